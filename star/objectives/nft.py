"""DiffusionNFT (arXiv 2509.16117): a forward-process objective, with the advantage allocated in space in two forms (ours).

Two branches around the old policy, v+ = b v + (1 - b) v_old and v- = (1 + b) v_old - b v, predict x0 from a noised rollout; the
optimality probability r weighs their errors. `weighted`: the map weighs the error, so it says how fast a place moves.
`per_location`: the map tilts r at every place, so it says how far. Normaliser and KL are unweighted. At the old policy both
have the gradient -(2 t / (N w)) A M(p) e(p) for the velocity at p, where e is the old policy's error of x0.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

import numpy as np
import torch

from star.objectives.advantages import group_advantages
from star.objectives.forward import ForwardProcess
from star.objectives.matching import Noised, normaliser, squared, velocity_distance, x0_error
from star.objectives.points import Terms, Velocities


def optimality(advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """r = 1/2 + 1/2 clip(A / clip, -1, 1): 1/2 where there is no advantage."""
    return 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)


def branch_errors(point: Noised, velocities: Velocities, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of x0 by the positive and the negative branch, float64 [M, C, H, W] each."""
    new, old = velocities.new, velocities.old
    return x0_error(point, strength * new + (1 - strength) * old), x0_error(point, (1 + strength) * old - strength * new)


class Nft(ForwardProcess):
    """Negative-aware fine-tuning of the policy against its old self, which samples."""

    idle = dict.fromkeys(("loss", "policy_loss", "kl", "old_distance", "x0_error", "clip_fraction"), 0.0)

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Group-relative advantages, float64 [B]."""
        return group_advantages(reward_B, group_B, self.settings.advantage_clip)

    def terms(self, point: Noised, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
        """The loss of every sample at a noised point, and its distance to the base's velocity."""
        plus, minus = branch_errors(point, velocities, self.settings.branch_strength)
        by_location = self.settings.form == "per_location"
        loss_M = (self._tilted if by_location else self._weighted)(plus, minus, advantage_M.double(), map_MHW)
        parts = {"policy_loss": (1.0, loss_M.float())} | self._kl(velocities)
        with torch.no_grad():
            tilt = advantage_M[:, None, None] * (map_MHW if by_location and map_MHW is not None else 1.0)
            means = {
                "old_distance": velocity_distance(velocities.new, velocities.old),
                "x0_error": x0_error(point, velocities.old).abs().mean((1, 2, 3)),
                "clip_fraction": (tilt.abs() >= self.settings.advantage_clip).double(),
            }
        return Terms(parts, means)

    def _weighted(
        self, plus: torch.Tensor, minus: torch.Tensor, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> torch.Tensor:
        """Errors weighed by the map, [M]."""
        r_M = optimality(advantage_M, self.settings.advantage_clip)
        pulled_M = r_M * squared(plus, map_MHW) / normaliser(plus)
        pushed_M = (1 - r_M) * squared(minus, map_MHW) / normaliser(minus)
        return (pulled_M + pushed_M) * (self.settings.advantage_clip / self.settings.branch_strength)

    def _tilted(
        self, plus: torch.Tensor, minus: torch.Tensor, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> torch.Tensor:
        """The optimality probability tilted by the map at every place, [M]."""
        tilt_MHW = torch.ones_like(plus[:, 0]) if map_MHW is None else map_MHW.double()
        r_MHW = optimality(tilt_MHW * advantage_M[:, None, None], self.settings.advantage_clip)
        pulled_MHW = r_MHW * (plus**2).mean(1) / normaliser(plus)[:, None, None]
        pushed_MHW = (1 - r_MHW) * (minus**2).mean(1) / normaliser(minus)[:, None, None]
        loss_M = (pulled_MHW + pushed_MHW).mean((1, 2))
        return loss_M * (self.settings.advantage_clip / self.settings.branch_strength)
