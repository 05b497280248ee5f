"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a ratio of zero mean and equal scale at every step, and equal gradients.

The log-ratio is mean(noise d), d = mean_new - mean_old, which is std (log p_new - log p_old + d^2 / (2 std^2)); the loss of a
step is divided by -dt. With a map (ours) it is the mean of M noise d: the bias is weighted by the same map, so the expectation
stays zero at the old policy for any map that was recorded before the noise was drawn.

Shapes: M micro-batch, B rollouts of the epoch, H W latent grid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.spread import spread
from star.flow.schedule import step_mean
from star.objectives import trajectory
from star.objectives.advantages import group_advantages
from star.objectives.points import Terms, Transition, Velocities
from star.objectives.trajectory import clipped_loss, clipped_loss_by_location

if TYPE_CHECKING:
    from star.config import Guard as Settings
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


def log_ratio(point: Transition, mean_MCHW: torch.Tensor) -> torch.Tensor:
    """The normalised log-ratio at every location, [M, H, W]; zero where the policy is the old one."""
    noise_MCHW = (point.x_next - point.old_mean) / point.schedule.std[point.step].item()
    return (noise_MCHW * (mean_MCHW - point.old_mean)).mean(1)


class Guard:
    """The clipped surrogate of normalised ratios on the trained steps, and the KL to the untrained model."""

    noisy, sampled_by_old, keeps_old_means = True, False, True
    drops_zero_advantage = True
    idle = trajectory.IDLE

    def __init__(self, settings: "Settings") -> None:
        self.settings = settings
        self.by_location = settings.form == "per_location"
        self.clip_range = settings.location_clip_range if self.by_location else settings.clip_range
        self.ratio_off_one = trajectory.ratio_off_one(self.clip_range)
        self.asks = frozenset({"reference"} if settings.kl_weight > 0 else ())

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Group-relative advantages, float64 [B]."""
        return group_advantages(reward_B, group_B, self.settings.advantage_clip, self.settings.advantage_spread)

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Transition]:
        """The transitions of the trained steps, with their old means."""
        return trajectory.transitions(epoch, rollouts, rows)

    def points_a_sample(self, trained: range) -> int:
        """One a trained step."""
        return len(trained)

    def terms(
        self, point: Transition, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> Terms:
        """Policy loss and KL of every sample at one transition."""
        schedule, step = point.schedule, point.step
        mean = step_mean(schedule, step, point.x, velocities.new)
        log_ratio_MHW = log_ratio(point, mean)
        if self.by_location:
            zero = torch.zeros_like(log_ratio_MHW)
            loss_M, ratio = clipped_loss_by_location(advantage_M, log_ratio_MHW, zero, map_MHW, self.clip_range)
        else:
            log_ratio_M = spread(log_ratio_MHW, map_MHW)
            loss_M, ratio = clipped_loss(advantage_M, log_ratio_M, torch.zeros_like(log_ratio_M), self.clip_range)
        duration = (schedule.std[step] / schedule.spread[step]).item() ** 2  # -dt
        terms = trajectory.terms(point, mean, velocities, loss_M=loss_M / duration, ratio=ratio, kl=self.settings.kl_weight)
        terms.means["clip_fraction"] = trajectory.clipped_share(ratio, self.clip_range)
        return terms

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """Nothing: the rollouts of the next epoch are those of the policy as it is."""
