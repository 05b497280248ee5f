"""Flow-GRPO (arXiv 2505.05470) with the advantage allocated in space, in two forms, which are ours (docs/method.md).

`weighted`: one ratio a sample, of log-probabilities `spread` by the map, into `clipped_loss`. `per_location`: a ratio and a
clip at every location, `clipped_loss_by_location`. Both have the same gradient where the ratio is 1.

Shapes: M micro-batch, H W latent grid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.spread import spread
from star.config import Allocation, Training
from star.flow.schedule import log_prob, reference_kl, step_mean
from star.objectives.door import Terms, Transition, Velocities

if TYPE_CHECKING:
    from star.training.epoch import Epoch
    from star.training.rollout import Rollouts


def clipped_loss(
    advantage_M: torch.Tensor, new_M: torch.Tensor, old_M: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss a sample and the ratio, both [M]."""
    ratio_M = torch.exp(new_M - old_M)
    clipped_M = ratio_M.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage_M * ratio_M, -advantage_M * clipped_M), ratio_M


def clipped_loss_by_location(
    advantage_M: torch.Tensor, new_MHW: torch.Tensor, old_MHW: torch.Tensor, map_MHW: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss a sample, [M]: the mean over locations of the map times PPO's clipped loss there. And the ratios, [M, H, W]."""
    loss_MHW, ratio_MHW = clipped_loss(advantage_M[:, None, None], new_MHW, old_MHW, clip_range)
    return (map_MHW * loss_MHW).mean((1, 2)), ratio_MHW


class FlowGrpo:
    """The clipped surrogate on the trained steps, and the KL to the untrained model."""

    noisy_rollouts = True
    drops_zero_advantage = True
    ratio_starts_at_one = True
    idle = dict.fromkeys(("ratio_mean", "ratio_min", "ratio_max"), 1.0) | dict.fromkeys(
        ("loss", "policy_loss", "kl", "approximate_kl", "clip_fraction", "ratio_max_deviation"), 0.0
    )

    def __init__(self, training: Training, allocation: Allocation) -> None:
        self.by_location = allocation.objective == "per_location"
        self.clip_range = training.location_clip_range if self.by_location else training.clip_range
        self.kl_weight = training.kl_beta
        self.asks = frozenset({"reference"} if training.kl_beta > 0 else ())

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Transition]:
        """The transitions of the trained steps of some rollouts of the epoch."""
        places = rollouts.places(rows)
        for s, t in enumerate(epoch.trained):
            yield Transition(
                index=s,
                step=t,
                sigma=epoch.schedule.sigma[t].item(),
                x=rollouts.latents_RSCHW[places, s],
                x_next=rollouts.latents_RSCHW[places, s + 1],
                old_log_prob=rollouts.log_prob_RTHW[places, s],
            )

    def terms(
        self,
        epoch: "Epoch",
        point: Transition,
        *,
        velocities: Velocities,
        advantage_M: torch.Tensor,
        map_MHW: torch.Tensor | None,
    ) -> Terms:
        """Policy loss and KL of every sample at one transition."""
        schedule, t = epoch.schedule, point.step
        mean = step_mean(schedule, t, point.x, velocities.new)
        new_MHW, old_MHW = log_prob(schedule, t, point.x_next, mean), point.old_log_prob
        if self.by_location:
            loss_M, ratio = clipped_loss_by_location(advantage_M, new_MHW, old_MHW, map_MHW, self.clip_range)
        else:
            loss_M, ratio = clipped_loss(advantage_M, spread(new_MHW, map_MHW), spread(old_MHW, map_MHW), self.clip_range)
        parts = {"policy_loss": (1.0, loss_M)}
        if velocities.reference is not None:
            with torch.no_grad():
                reference = step_mean(schedule, t, point.x, velocities.reference)
            parts["kl"] = (self.kl_weight, reference_kl(schedule, t, mean, reference))
        ratio = ratio.detach()
        return Terms(
            parts=parts,
            means={
                "ratio_mean": ratio,
                "approximate_kl": ratio - 1 - ratio.log(),
                "clip_fraction": ((ratio - 1).abs() > self.clip_range).float(),
            },
            ratio=ratio,
        )
