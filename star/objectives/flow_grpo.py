"""Flow-GRPO (arXiv 2505.05470) with the advantage allocated in space (docs/method.md).

Shapes: M micro-batch, B rollouts of the epoch, H W latent grid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.spread import spread
from star.config import FlowGrpo as Settings
from star.config import Guard as GuardSettings
from star.flow.schedule import Schedule, log_prob, step_mean
from star.objectives import trajectory
from star.objectives.advantages import group_advantages
from star.objectives.points import Terms, Transition, Velocities
from star.objectives.trajectory import clipped_loss, clipped_loss_by_location

if TYPE_CHECKING:
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


class FlowGrpo:
    """The clipped surrogate on the trained steps, and the KL to the untrained model."""

    noisy, sampled_by_old, keeps_old_means = True, False, False
    drops_zero_advantage = True
    idle = trajectory.IDLE

    def __init__(self, settings: Settings | GuardSettings) -> None:
        self.settings = settings
        self.by_location = settings.form == "per_location"
        self.clip_range = settings.location_clip_range if self.by_location else settings.clip_range
        self.ratio_off_one = trajectory.ratio_off_one(self.clip_range)
        self.asks = frozenset({"reference"} if settings.kl_weight > 0 else ())

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Group-relative advantages, float64 [B]."""
        return group_advantages(reward_B, group_B, self.settings.advantage_clip, self.settings.advantage_spread)

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Transition]:
        """The transitions of the trained steps."""
        return trajectory.transitions(epoch, rollouts, rows)

    def points_a_sample(self, trained: range) -> int:
        """One a trained step."""
        return len(trained)

    def gradient_scale(self, schedule: Schedule, step: int) -> float:
        """Of a log-probability for the velocity: noise x (coefficient of v) / std."""
        return (schedule.coef_v[step].abs() / schedule.std[step]).item()

    def terms(
        self, point: Transition, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> Terms:
        """Policy loss and KL of every sample at one transition."""
        mean = step_mean(point.schedule, point.step, point.x, velocities.new)
        loss_M, ratio = self._policy_loss(point, mean, advantage_M, map_MHW)
        terms = trajectory.terms(point, mean, velocities, loss_M=loss_M, ratio=ratio, kl=self.settings.kl_weight)
        terms.means["clip_fraction"] = trajectory.clipped_share(ratio, self.clip_range)
        return terms

    def _policy_loss(
        self, point: Transition, mean_MCHW: torch.Tensor, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clipped loss a sample, [M], and the ratios, [M] or [M, H, W]."""
        new_MHW, old_MHW = log_prob(point.schedule, point.step, point.x_next, mean_MCHW), point.old_log_prob
        if self.by_location:
            return clipped_loss_by_location(advantage_M, new_MHW, old_MHW, map_MHW, self.clip_range)
        return clipped_loss(advantage_M, spread(new_MHW, map_MHW), spread(old_MHW, map_MHW), self.clip_range)

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """Nothing: the rollouts of the next epoch are those of the policy as it is."""
