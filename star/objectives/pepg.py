"""ELBO policy gradients (rethinking-diffusion-rl): the error of x0 as log-probability, with the map inside it (ours).

E(v) = -mean(M (x0_hat - x0)^2 / w), w without gradient and unweighted; lambda = sg E(v) - E(v_old). Forms: `epg`
-(e^lambda A E), `pepg` -(e^lambda (A - lambda) E), `par` 1/2 e^lambda (A - (E - E_old))^2.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.objectives.advantages import centred
from star.objectives.matching import (
    Noised,
    normaliser,
    old_policy_decay,
    rollout_points,
    squared,
    trained_levels,
    velocity_distance,
    x0_error,
)
from star.objectives.points import Terms, Velocities

if TYPE_CHECKING:
    from star.config import Pepg as Settings
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


class Pepg:
    """A proximal policy gradient on the evidence bound at noised points."""

    noisy, sampled_by_old, keeps_old_means = False, True, False
    idle = dict.fromkeys(("loss", "policy_loss", "kl", "old_distance", "log_ratio"), 0.0)
    ratio_off_one = 0.0

    def __init__(self, settings: "Settings") -> None:
        self.settings = settings
        self.drops_zero_advantage = settings.drop_equal_groups
        self.asks = frozenset({"old", "reference"} if settings.kl_weight > 0 else {"old"})

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Scaled rewards minus their group's mean, not divided by a deviation; float64 [B]."""
        return self.settings.advantage_scale * centred(reward_B, group_B)

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Noised]:
        """Noised rollouts at `points_a_sample` of the sampler's own noise levels."""
        levels = trained_levels(epoch)
        return rollout_points(epoch, rollouts, rows, levels=levels, times=self.points_a_sample(epoch.trained))

    def points_a_sample(self, trained: range) -> int:
        """The setting, or all noise levels of the trained steps."""
        return self.settings.times or len(trained)

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

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """Move the old policy towards the policy."""
        learner.move_old(old_policy_decay(self.settings.old_policy, epoch))

    @staticmethod
    def _bound(point: Noised, v_MCHW: torch.Tensor, map_MHW: torch.Tensor | None) -> torch.Tensor:
        error = x0_error(point, v_MCHW)
        return -squared(error, map_MHW) / normaliser(error)
