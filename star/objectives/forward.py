"""What forward-process objectives are made of alike: points, the old policy and the distance from the base.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from star.objectives.matching import Noised, old_policy_decay, rollout_points, velocity_distance
from star.objectives.points import Velocities

if TYPE_CHECKING:
    import torch

    from star.config import Awm, Nft, Pepg
    from star.flow.schedule import Schedule
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


class ForwardProcess:
    """An objective that learns at noised clean rollouts, beside an old policy that follows."""

    noisy, sampled_by_old, keeps_old_means = False, True, False
    ratio_off_one = 0.0
    skip_first = False  # noise levels that are never trained: the first, or none

    def __init__(self, settings: "Nft | Pepg | Awm") -> None:
        self.settings = settings
        self.drops_zero_advantage = settings.drop_equal_groups
        self.asks = frozenset({"old", "reference"} if settings.kl_weight > 0 else {"old"})

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Noised]:
        """Noised rollouts at `points_a_sample` of the sampler's own noise levels in the trained range."""
        levels = epoch.schedule.sigma[list(self.levels(epoch.trained))]
        return rollout_points(epoch, rollouts, rows, levels=levels, times=self.points_a_sample(epoch.trained))

    def levels(self, trained: range) -> range:
        """The sampler's noise levels, by their places, at which points may lie."""
        return trained[self.skip_first :]

    def points_a_sample(self, trained: range) -> int:
        """The setting, or all noise levels that may be trained."""
        return self.settings.times or len(self.levels(trained))

    def gradient_scale(self, schedule: "Schedule", step: int) -> float:
        """Unknown: points are noised afresh, without the sampler."""
        return 1.0

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """Move the old policy towards the policy."""
        learner.move_old(old_policy_decay(self.settings.old_policy, epoch))

    def _kl(self, velocities: Velocities) -> "dict[str, tuple[float, torch.Tensor]]":
        """The part `kl` of the loss where the base's velocity is there."""
        if velocities.reference is None:
            return {}
        return {"kl": (self.settings.kl_weight, velocity_distance(velocities.new, velocities.reference))}
