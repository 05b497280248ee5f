"""The door for objectives: what an update asks of one, and the one place where its name decides.

An objective turns rollouts into points at which the policy's velocity is wanted, and the velocities there into losses. Two
families share the door: trajectory objectives, whose points are transitions of noisy rollouts, and forward-process objectives,
whose points are noised clean rollouts. A further objective is one file here and one line in `make_objective`.

Shapes: M micro-batch, B rollouts of the epoch, C H W latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from star.flow.schedule import Schedule
from star.objectives.matching import Noised

if TYPE_CHECKING:
    from star.config import RunSettings
    from star.training.epoch import Epoch
    from star.training.learner import Learner
    from star.training.rollout import Rollouts


@dataclass(frozen=True)
class Transition:
    """A trained step of noisy rollouts: latents before and after [M, C, H, W], old log-probabilities [M, H, W].

    `index` counts the epoch's trained steps (and maps), `step` the denoising steps. `old_mean` [M, C, H, W] is there when the
    objective asked for it.
    """

    index: int
    step: int
    schedule: Schedule
    x: torch.Tensor
    x_next: torch.Tensor
    old_log_prob: torch.Tensor
    old_mean: torch.Tensor | None = None

    @property
    def sigma(self) -> float:
        """The noise level before the step."""
        return self.schedule.sigma[self.step].item()

    def to(self, device: torch.device) -> "Transition":
        tensors = (self.x, self.x_next, self.old_log_prob, self.old_mean)
        moved = (None if tensor is None else tensor.to(device) for tensor in tensors)
        return Transition(self.index, self.step, self.schedule, *moved)


Point = Transition | Noised


@dataclass(frozen=True)
class Velocities:
    """Velocities at a point, float32 [M, C, H, W]: the policy's with gradient, and what else the objective asked for."""

    new: torch.Tensor
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """Losses of one point: `parts` name -> (weight, loss a sample [M]); and what metrics.jsonl says of it.

    `means` are averaged over the samples that count; `ratio`, where there is one, also gives ratio_min and ratio_max.
    """

    parts: dict[str, tuple[float, torch.Tensor]]
    means: dict[str, torch.Tensor] = field(default_factory=dict)
    ratio: torch.Tensor | None = None


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
