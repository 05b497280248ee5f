"""The door for sources of allocation: where the raw map of a rollout's steps comes from. Source: ours (docs/method.md).

A further source is one function of an `Observation` and one line in `_SOURCES`. A source may see attention, true objects,
rewards and groups. It is asked for all steps of a rollout at once, or for a single point (T = 1).

Shapes: B rollouts, T steps, O recorded blocks, h w token grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Observation:
    """What a source may see of B (`samples`) rollouts at T (`steps`) steps; None where nobody looked.

    `raw_BTOhw` has the recorded blocks' maps, `region_Bhw` the share of every token that true objects cover, `reward_B` and
    `group_B` the rewards and the prompts they are compared within. `patch` is how many latents a side make a token.
    """

    samples: int
    steps: int
    tokens: tuple[int, int]
    patch: int
    raw_BTOhw: torch.Tensor | None = None
    region_Bhw: torch.Tensor | None = None
    reward_B: np.ndarray | None = None
    group_B: np.ndarray | None = None


def _attention(seen: Observation) -> torch.Tensor:
    return seen.raw_BTOhw.float().mean(2)


def _uniform(seen: Observation) -> torch.Tensor:
    return torch.zeros(seen.samples, seen.steps, *seen.tokens)


def _oracle(seen: Observation) -> torch.Tensor:
    return seen.region_Bhw.float()[:, None].expand(-1, seen.steps, -1, -1)


_SOURCES: dict[str, Callable[[Observation], torch.Tensor]] = {
    "uniform": _uniform,
    "attention": _attention,
    "oracle": _oracle,
}


def raw_map(source: str, seen: Observation) -> torch.Tensor:
    """The raw map of a source, float32 [B, T, h, w], non-negative: more is more relevant."""
    return _SOURCES[source](seen)
