"""Allocation maps of an epoch: for the steps of its rollouts, or, in a forward-process objective, at every point as it comes.

Shapes: R rollouts held by this process, M micro-batch, T trained steps, O recorded blocks, H W latents, h w token grid.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.maps import allocation_map
from star.allocation.sources import Observation
from star.flow.seeding import rng
from star.models.attention import Recorder

if TYPE_CHECKING:
    from star.config import Allocation
    from star.training.epoch import Epoch, Session
    from star.training.rollout import Rollouts


def recorder_of(allocation: "Allocation", epoch: "Epoch", prompt_B: np.ndarray) -> Recorder | None:
    """What a pass over samples of the epoch's prompts `prompt_B` is asked to record; None for the scalar objective."""
    if epoch.columns is None:
        return None
    heads = None if allocation.heads is None else tuple(allocation.heads)
    return Recorder(epoch.columns[torch.from_numpy(prompt_B)], tuple(allocation.blocks), heads)


def make_maps(allocation: "Allocation", rollouts: "Rollouts", epoch: "Epoch") -> torch.Tensor | None:
    """The maps of the held rollouts and trained steps [R, T, H, W]; None for the scalar objective and for clean rollouts."""
    if allocation.source == "none" or rollouts.raw_RTOhw is None:
        return None
    steps, tokens = rollouts.raw_RTOhw.shape[1], tuple(rollouts.raw_RTOhw.shape[-2:])
    noise_RThw = None
    if allocation.control in ("random", "shuffled"):
        shape = (len(rollouts.prompt_B), len(epoch.trained), *tokens)
        noise_RThw = torch.randn(shape, generator=rng("random map", epoch.seed, epoch.number))[rollouts.row_R]
    seen = Observation(
        samples=len(rollouts.row_R),
        steps=steps,
        tokens=tokens,
        patch=rollouts.latents_RSCHW.shape[-1] // tokens[1],
        raw_BTOhw=rollouts.raw_RTOhw,
        region_Bhw=rollouts.region_Rhw,
        reward_B=rollouts.reward_B[rollouts.row_R],
        group_B=rollouts.prompt_B[rollouts.row_R],
    )
    return allocation_map(allocation, seen, epoch.trained, noise_RThw)


class PointMaps:
    """Maps at noised points: attention is recorded in the old policy's pass at the very latents that the map weighs."""

    def __init__(self, session: "Session", epoch: "Epoch", rollouts: "Rollouts") -> None:
        self.allocation, self.epoch, self.rollouts = session.settings.allocation, epoch, rollouts
        self.geometry = session.learner.policy.model.geometry

    def recorder(self, rows_M: np.ndarray) -> Recorder | None:
        """What the old policy's pass is asked to record for some rollouts of the epoch."""
        return recorder_of(self.allocation, self.epoch, self.rollouts.prompt_B[rows_M])

    def at(self, index: int, rows_M: np.ndarray, recorder: Recorder | None) -> torch.Tensor | None:
        """The maps [M, H, W] at the samples' point number `index`; None for the scalar objective."""
        if self.allocation.source == "none":
            return None
        rollouts, tokens = self.rollouts, self.geometry.tokens
        raw_M1Ohw = None if recorder is None else recorder.raw_maps().unflatten(-1, tokens)[:, None]
        noise_M1hw = None
        if self.allocation.control in ("random", "shuffled"):
            rngs = [rng("random map", self.epoch.seed, self.epoch.number, int(row), index) for row in rows_M]
            noise_M1hw = torch.stack([torch.randn((1, *tokens), generator=generator) for generator in rngs])
        seen = Observation(
            samples=len(rows_M),
            steps=1,
            tokens=tokens,
            patch=self.geometry.patch,
            raw_BTOhw=raw_M1Ohw,
            region_Bhw=None if rollouts.region_Rhw is None else rollouts.region_Rhw[rollouts.places(rows_M)],
            reward_B=rollouts.reward_B[rows_M],
            group_B=rollouts.prompt_B[rows_M],
        )
        device = rollouts.latents_RSCHW.device if raw_M1Ohw is None else raw_M1Ohw.device
        noise_M1hw = None if noise_M1hw is None else noise_M1hw.to(device)
        return allocation_map(self.allocation, seen, range(1), noise_M1hw)[:, 0]
