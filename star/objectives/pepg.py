"""ELBO policy gradients (rethinking-diffusion-rl): the error of x0 as log-probability, with the map inside it (ours).

E(v) = -mean(M (x0_hat - x0)^2 / w), w without gradient and unweighted; lambda = sg E(v) - E(v_old). Forms: `epg`
-(e^lambda A E), `pepg` -(e^lambda (A - lambda) E), `par` 1/2 e^lambda (A - (E - E_old))^2.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

from typing import TYPE_CHECKING

import torch

from star.objectives.door import Terms, Velocities
from star.objectives.matching import Noised, normaliser, squared, velocity_distance, x0_error

if TYPE_CHECKING:
    from star.config import Pepg


class Pepg:
    """A proximal policy gradient on the evidence bound at noised points."""

    def __init__(self, settings: "Pepg") -> None:
        self.settings = settings
        self.asks = frozenset({"old"} | ({"reference"} if settings.kl_weight > 0 else set()))

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
        parts = {"policy_loss": (1.0, loss_M.float())}
        if velocities.reference is not None:
            parts["kl"] = (self.settings.kl_weight, velocity_distance(velocities.new, velocities.reference))
        with torch.no_grad():
            moved_M = velocity_distance(velocities.new, velocities.old)
        return Terms(parts, means={"old_distance": moved_M, "log_ratio": lambda_M})

    @staticmethod
    def _bound(point: Noised, v_MCHW: torch.Tensor, map_MHW: torch.Tensor | None) -> torch.Tensor:
        error = x0_error(point, v_MCHW)
        return -squared(error, map_MHW) / normaliser(error)
