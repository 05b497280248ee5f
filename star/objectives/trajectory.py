"""What trajectory objectives share: transitions of noisy rollouts, PPO's clipped loss with a map in two forms, the KL.

`weighted`: one ratio a sample, of log-ratios spread by the map. `per_location`: a ratio and a clip at every location. Both have
the same gradient where the ratio is 1.

Shapes: M micro-batch, C latent channels, H W latent grid. Source: PPO (arXiv 1707.06347); the maps are ours (docs/method.md).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.flow.schedule import reference_kl, step_mean
from star.objectives.points import Terms, Transition, Velocities

if TYPE_CHECKING:
    from star.training.epoch import Epoch
    from star.training.rollout import Rollouts

IDLE = dict.fromkeys(("ratio_mean", "ratio_min", "ratio_max"), 1.0) | dict.fromkeys(
    ("loss", "policy_loss", "kl", "approximate_kl", "clip_fraction", "ratio_max_deviation"), 0.0
)


def transitions(epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Transition]:
    """The transitions of the trained steps of some rollouts of the epoch."""
    places = rollouts.places(rows)
    for s, t in enumerate(epoch.trained):
        yield Transition(
            index=s,
            step=t,
            schedule=epoch.schedule,
            x=rollouts.latents_RSCHW[places, s],
            x_next=rollouts.latents_RSCHW[places, s + 1],
            old_log_prob=rollouts.log_prob_RTHW[places, s],
            old_mean=None if rollouts.mean_RTCHW is None else rollouts.mean_RTCHW[places, s],
        )


def clipped_loss(
    advantage_M: torch.Tensor, new_M: torch.Tensor, old_M: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss a sample and the ratio exp(new - old), both [M]."""
    ratio_M = torch.exp(new_M - old_M)
    clipped_M = ratio_M.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage_M * ratio_M, -advantage_M * clipped_M), ratio_M


def clipped_loss_by_location(
    advantage_M: torch.Tensor, new_MHW: torch.Tensor, old_MHW: torch.Tensor, map_MHW: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss a sample, [M]: the mean over locations of the map times PPO's clipped loss there. And the ratios, [M, H, W]."""
    loss_MHW, ratio_MHW = clipped_loss(advantage_M[:, None, None], new_MHW, old_MHW, clip_range)
    return (map_MHW * loss_MHW).mean((1, 2)), ratio_MHW


def terms(
    point: Transition, mean_MCHW: torch.Tensor, velocities: Velocities, *, loss_M: torch.Tensor, ratio: torch.Tensor, kl: float
) -> Terms:
    """The policy loss, the KL to the base with weight `kl` where its velocity is there, and what is said of the ratio."""
    parts = {"policy_loss": (1.0, loss_M)}
    if velocities.reference is not None:
        with torch.no_grad():
            reference = step_mean(point.schedule, point.step, point.x, velocities.reference)
        parts["kl"] = (kl, reference_kl(point.schedule, point.step, mean_MCHW, reference))
    ratio = ratio.detach()
    return Terms(parts=parts, means={"ratio_mean": ratio, "approximate_kl": ratio - 1 - ratio.log()}, ratio=ratio)


def clipped_share(ratio: torch.Tensor, clip_range: float) -> torch.Tensor:
    """Whether a ratio lies outside the clip range, float32 of the ratio's shape."""
    return ((ratio.detach() - 1).abs() > clip_range).float()


def ratio_off_one(clip_range: float) -> float:
    """How far off 1 a GPU's ratio may be before the first update.

    It may round a row by its place in the batch: some 3e-6 if bfloat16 rounded every velocity differently (estimate).
    """
    return max(clip_range / 10, 1e-5)
