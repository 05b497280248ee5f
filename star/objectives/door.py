"""The door for objectives: what an update asks of one, and the one place where its name decides.

An objective turns rollouts into points at which the policy's velocity is wanted, and the velocities there into losses. Two
families share the door: trajectory objectives, whose points are transitions of noisy rollouts, and forward-process objectives,
whose points are noised clean rollouts. A further objective is one file here and one line in `make_objective`.

Shapes: M micro-batch, B rollouts of the epoch, C H W latents.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from star.objectives.points import Point, Terms, Velocities

if TYPE_CHECKING:
    from star.config import RunSettings
    from star.flow.schedule import Schedule
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


class Objective(Protocol):
    """What an update is made of."""

    asks: frozenset[str]  # at a point, beside the policy's velocity: "old", "reference"
    noisy: bool  # rollouts carry noise in the trained steps, with log-probabilities; else only clean latents are kept
    sampled_by_old: bool  # the old policy samples the rollouts
    keeps_old_means: bool  # rollouts keep the means of their transitions
    drops_zero_advantage: bool
    ratio_off_one: float  # how far off 1 a GPU's ratio may be before the first update; a CPU's may not
    idle: dict[str, float]  # what metrics.jsonl says of an epoch in which nothing was learned

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Group-relative advantages, float64 [B]."""

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Point]:
        """The points of some rollouts of the epoch at which the policy learns, in a fixed order."""

    def points_a_sample(self, trained: range) -> int:
        """How many points a rollout has when these denoising steps may be trained."""

    def gradient_scale(self, schedule: "Schedule", step: int) -> float:
        """How large the gradient of a step is by the sampler's coefficients, up to a factor; 1 where they say nothing."""

    def terms(self, point: Point, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
        """The losses of every sample at a point."""

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """What happens after an epoch's updates, such as moving the old policy."""


def make_objective(settings: "RunSettings") -> Objective:
    """The objective of a run."""
    from star.objectives.awm import Awm
    from star.objectives.flow_grpo import FlowGrpo
    from star.objectives.guard import Guard
    from star.objectives.nft import Nft
    from star.objectives.pepg import Pepg

    objectives = {"flow_grpo": FlowGrpo, "guard": Guard, "nft": Nft, "pepg": Pepg, "awm": Awm}
    return objectives[settings.objective.name](settings.objective)
