"""The door for objectives: what an update asks of one, and the one place where its name decides.

An objective turns rollouts into points at which the policy's velocity is wanted, and the velocities there into losses. A
further one is one file here and one line in `make_objective`.

Shapes: M micro-batch, C H W latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from star.config import RunSettings
    from star.training.epoch import Epoch
    from star.training.rollout import Rollouts


@dataclass(frozen=True)
class Transition:
    """A trained step of sampled rollouts: latents before and after [M, C, H, W], old log-probabilities [M, H, W].

    `index` counts the epoch's trained steps (and maps), `step` the denoising steps.
    """

    index: int
    step: int
    sigma: float
    x: torch.Tensor
    x_next: torch.Tensor
    old_log_prob: torch.Tensor

    def to(self, device: torch.device) -> "Transition":
        moved = (tensor.to(device) for tensor in (self.x, self.x_next, self.old_log_prob))
        return Transition(self.index, self.step, self.sigma, *moved)


@dataclass(frozen=True)
class Velocities:
    """Velocities at a point, float32 [M, C, H, W]: the policy's with gradient, and what else the objective asked for."""

    new: torch.Tensor
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

    asks: frozenset[str]  # further velocities that it wants at a point: "reference"
    noisy_rollouts: bool  # its rollouts carry noise in the trained steps, with log-probabilities
    drops_zero_advantage: bool
    ratio_starts_at_one: bool  # before the first update every ratio must be 1
    clip_range: float
    idle: dict[str, float]  # what metrics.jsonl says of an epoch in which no rollout had an advantage

    def points(self, epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray) -> Iterator[Transition]:
        """The points of some rollouts of the epoch at which the policy learns, in a fixed order."""

    def terms(
        self,
        epoch: "Epoch",
        point: Transition,
        *,
        velocities: Velocities,
        advantage_M: torch.Tensor,
        map_MHW: torch.Tensor | None,
    ) -> Terms:
        """The losses of every sample at a point."""


def make_objective(settings: "RunSettings") -> Objective:
    """The objective of a run."""
    from star.objectives.flow_grpo import FlowGrpo

    return FlowGrpo(settings.training, settings.allocation)
