"""What crosses the door of objectives: points at which a velocity is wanted, the velocities, and the losses made of them.

Shapes: M micro-batch, C H W latents.
"""

from dataclasses import dataclass, field

import torch

from star.flow.schedule import Schedule
from star.objectives.matching import Noised


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
