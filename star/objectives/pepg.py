"""ELBO policy gradients (rethinking-diffusion-rl): the error of x0 as log-probability, with the map inside it (ours).

E(v) = -mean(M (x0_hat - x0)^2 / w), w without gradient and unweighted; lambda = sg E(v) - E(v_old). Forms: `epg`
-(e^lambda A E), `pepg` -(e^lambda (A - lambda) E), `par` 1/2 e^lambda (A - (E - E_old))^2.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

import numpy as np
import torch

from star.objectives.advantages import centred
from star.objectives.forward import ForwardProcess
from star.objectives.matching import Noised, normaliser, squared, velocity_distance, x0_error
from star.objectives.points import Terms, Velocities


class Pepg(ForwardProcess):
    """A proximal policy gradient on the evidence bound at noised points."""

    idle = dict.fromkeys(("loss", "policy_loss", "kl", "old_distance", "log_ratio"), 0.0)

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Scaled rewards minus their group's mean, not divided by a deviation; float64 [B]."""
        return self.settings.advantage_scale * centred(reward_B, group_B)

    def terms(self, point: Noised, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
        """The loss of every sample at a noised point, and its distance to the base's velocity."""
        bound_M, old_M = (self._bound(point, v, map_MHW) for v in (velocities.new, velocities.old.detach()))
        lambda_M = (bound_M - old_M).detach()
        weight_M, advantage_M = lambda_M.exp(), advantage_M.double()
        if self.settings.form == "epg":
            loss_M = -weight_M * advantage_M * bound_M
        elif self.settings.form == "pepg":
            loss_M = -weight_M * (advantage_M - lambda_M) * bound_M
        else:
            loss_M = 0.5 * weight_M * (advantage_M - (bound_M - old_M)) ** 2
        parts = {"policy_loss": (1.0, loss_M.float())} | self._kl(velocities)
        with torch.no_grad():
            moved_M = velocity_distance(velocities.new, velocities.old)
        return Terms(parts, means={"old_distance": moved_M, "log_ratio": lambda_M})

    @staticmethod
    def _bound(point: Noised, v_MCHW: torch.Tensor, map_MHW: torch.Tensor | None) -> torch.Tensor:
        error = x0_error(point, v_MCHW)
        return -squared(error, map_MHW) / normaliser(error)
