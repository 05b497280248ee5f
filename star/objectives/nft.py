"""DiffusionNFT (arXiv 2509.16117): a forward-process objective, with the advantage allocated in space in two forms (ours).

Two branches around the old policy, v+ = b v + (1 - b) v_old and v- = (1 + b) v_old - b v, predict x0 from a noised rollout; the
optimality probability r weighs their errors. `weighted`: the map weighs the error, so it says how fast a place moves.
`per_location`: the map tilts r at every place, so it says how far. Normaliser and KL are unweighted. At the old policy both have
the gradient -(2 t / (N w)) A M(p) e(p) for the velocity at p, where e is the old policy's error of x0.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

from typing import TYPE_CHECKING

import torch

from star.objectives.door import Terms, Velocities
from star.objectives.matching import Noised, normaliser, squared, velocity_distance, x0_error

if TYPE_CHECKING:
    from star.config import Nft


def optimality(advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """r = 1/2 + 1/2 clip(A / clip, -1, 1): 1/2 where there is no advantage."""
    return 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)


def branch_errors(point: Noised, velocities: Velocities, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of x0 by the positive and the negative branch, float64 [M, C, H, W] each."""
    new, old = velocities.new, velocities.old
    return x0_error(point, strength * new + (1 - strength) * old), x0_error(point, (1 + strength) * old - strength * new)


class Nft:
    """Negative-aware fine-tuning of the policy against its old self, which samples."""

    def __init__(self, settings: "Nft") -> None:
        self.settings = settings
        self.asks = frozenset({"old"} | ({"reference"} if settings.kl_weight > 0 else set()))

    def terms(self, point: Noised, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
        """The loss of every sample at a noised point, and its distance to the base's velocity."""
        settings = self.settings
        clip, strength = settings.advantage_clip, settings.branch_strength
        plus, minus = branch_errors(point, velocities, strength)
        w_plus_M, w_minus_M = normaliser(plus), normaliser(minus)
        if settings.form == "per_location" and map_MHW is not None:
            r_MHW = optimality(map_MHW.double() * advantage_M[:, None, None], clip)
            pulled = r_MHW * (plus**2).mean(1) / w_plus_M[:, None, None]
            pushed = (1 - r_MHW) * (minus**2).mean(1) / w_minus_M[:, None, None]
            loss_M = (pulled + pushed).mean((1, 2)) * (clip / strength)
            clipped_M = ((map_MHW * advantage_M[:, None, None]).abs() > clip).double().mean((1, 2))
        else:
            r_M = optimality(advantage_M.double(), clip)
            loss_M = (r_M * squared(plus, map_MHW) / w_plus_M + (1 - r_M) * squared(minus, map_MHW) / w_minus_M) * (
                clip / strength
            )
            clipped_M = (advantage_M.abs() >= clip).double()
        parts = {"policy_loss": (1.0, loss_M.float())}
        if velocities.reference is not None:
            parts["kl"] = (settings.kl_weight, velocity_distance(velocities.new, velocities.reference))
        with torch.no_grad():
            moved_M = velocity_distance(velocities.new, velocities.old)
            error_M = x0_error(point, velocities.old).abs().mean((1, 2, 3))
        return Terms(parts, means={"old_distance": moved_M, "x0_error": error_M, "clip_fraction": clipped_M})


def old_policy_decay(schedule: str, epoch: int) -> float:
    """How much of the old policy stays after an epoch: the published schedules `none`, `ramp` and `late_ramp` (their types 0 to 2).

    `none` 0, `ramp` min(0.001 epoch, 0.5), `late_ramp` 0 before epoch 75, then min(0.0075 (epoch - 75), 0.999).
    """
    if schedule == "none":
        return 0.0
    if schedule == "ramp":
        return min(0.001 * epoch, 0.5)
    return 0.0 if epoch < 75 else min(0.0075 * (epoch - 75), 0.999)
