"""The door for sources of allocation: where the raw map of a rollout's steps comes from. Source: ours (docs/method.md).

A further source is one function of an `Observation` and one line in `_SOURCES`. A source may see attention, true objects,
the contrast of groups (star/allocation/contrast.py), rewards and groups. It is asked for all steps of a rollout at once, or for
a single point (T = 1).

Shapes: B rollouts, T steps, O recorded blocks, h w token grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from star.config import Allocation


@dataclass(frozen=True)
class Observation:
    """What a source may see of B (`samples`) rollouts at T (`steps`) steps; None where nobody looked.

    `raw_BTOhw` has the recorded blocks' maps, `region_Bhw` the share of every token that true objects cover, `contrast_BThw`
    what the source's `contrast` says of the rollout's group, `reward_B` and `group_B` the rewards and the prompts they are
    compared within. `patch` is how many latents a side make a token.
    """

    samples: int
    steps: int
    tokens: tuple[int, int]
    patch: int
    raw_BTOhw: torch.Tensor | None = None
    region_Bhw: torch.Tensor | None = None
    contrast_BThw: torch.Tensor | None = None
    reward_B: np.ndarray | None = None
    group_B: np.ndarray | None = None


def _attention(seen: Observation) -> torch.Tensor:
    return seen.raw_BTOhw.float().mean(2)


def _uniform(seen: Observation) -> torch.Tensor:
    device = None if seen.raw_BTOhw is None else seen.raw_BTOhw.device
    return torch.zeros(seen.samples, seen.steps, *seen.tokens, device=device)


def _oracle(seen: Observation) -> torch.Tensor:
    return seen.region_Bhw.float()[:, None].expand(-1, seen.steps, -1, -1)


def _contrast(seen: Observation) -> torch.Tensor:
    return seen.contrast_BThw.float()


def _attended_contrast(seen: Observation) -> torch.Tensor:
    return _attention(seen) * _contrast(seen).to(seen.raw_BTOhw.device)


_SOURCES: dict[str, Callable[[Observation], torch.Tensor]] = {
    "uniform": _uniform,
    "attention": _attention,
    "oracle": _oracle,
    "deviation": _contrast,
    "covariance": _contrast,
    "attention_deviation": _attended_contrast,
    "attention_covariance": _attended_contrast,
}


def contrast(source: str) -> str | None:
    """What a source compares within groups, `deviation` or `covariance`; None for one that compares nothing."""
    last = source.rpartition("_")[2]
    return last if last in ("deviation", "covariance") else None


def looks_at_attention(source: str) -> bool:
    """Whether a source needs recorded attention."""
    return source.startswith("attention")


def recorded_blocks(allocation: "Allocation") -> tuple[int, ...]:
    """The blocks whose attention is recorded while maps are made; none for sources that are nothing but contrast."""
    if allocation.source == "none" or (contrast(allocation.source) and not looks_at_attention(allocation.source)):
        return ()
    return tuple(allocation.blocks)


def raw_map(source: str, seen: Observation) -> torch.Tensor:
    """The raw map of a source, float32 [B, T, h, w], non-negative: more is more relevant."""
    return _SOURCES[source](seen)
