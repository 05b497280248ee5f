"""Allocation maps of an epoch: for the steps of its rollouts, or, in a forward-process objective, at every point as it comes.

Shapes: R rollouts held by this process, M micro-batch, T trained steps, O recorded blocks, H W latents, h w token grid.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.contrast import Groups, by_token, covariance, deviation
from star.allocation.maps import allocation_map
from star.allocation.sources import Observation, contrast, recorded_blocks
from star.flow.seeding import rng
from star.models.attention import Recorder

if TYPE_CHECKING:
    from star.config import Allocation
    from star.training.epoch import Epoch, Session
    from star.training.rollout import Rollouts


def recorder_of(allocation: "Allocation", epoch: "Epoch", prompt_B: np.ndarray) -> Recorder | None:
    """What a pass over samples of the epoch's prompts `prompt_B` is asked to record; None where no maps need it."""
    if epoch.columns is None:
        return None
    heads = None if allocation.heads is None else tuple(allocation.heads)
    return Recorder(epoch.columns[torch.from_numpy(prompt_B)], recorded_blocks(allocation), heads)


def needs_means(allocation: "Allocation") -> bool:
    """Whether maps are made of the means of the rollouts' steps."""
    return contrast(allocation.source) is not None and allocation.contrast_latents == "predicted"


def with_contrast(
    allocation: "Allocation",
    rollouts: "Rollouts",
    *,
    session: "Session",
    epoch: "Epoch",
    reward_B: np.ndarray,
) -> "Rollouts":
    """The rollouts with what the source compares within groups; as they are where it compares nothing.

    Differences go, or not, with `reward_B`: the epoch's rewards, or its advantages, which several rewards may make. All
    processes must call it together, before rollouts are exchanged.
    """
    of = contrast(allocation.source)
    if of is None:
        return rollouts
    groups = Groups(reward_B, rollouts.prompt_B, rollouts.row_R)
    total, patch = session.processes.total, session.learner.policy.model.geometry.patch
    steps = max(rollouts.latents_RSCHW.shape[1] - 1, 1)
    places = range(1, steps + 1) if allocation.contrast_latents != "final" else (-1,)
    maps = []
    for s in places:
        x_RCHW = _compared(allocation, rollouts, epoch, s)
        if of == "deviation":
            value_RHW = deviation(x_RCHW, groups, total)
        else:
            value_RHW = covariance(x_RCHW, groups, total, leave_one_out=allocation.leave_one_out)
        maps.append(by_token(value_RHW, patch))
    return replace(rollouts, contrast_RThw=torch.stack(maps, 1).expand(-1, steps, -1, -1))


def _compared(allocation: "Allocation", rollouts: "Rollouts", epoch: "Epoch", s: int) -> torch.Tensor:
    """Latents number `s` of the held rollouts [R, C, H, W], or the clean picture that they predict."""
    x, schedule = rollouts.latents_RSCHW[:, s], epoch.schedule
    if allocation.contrast_latents != "predicted" or s == len(schedule):
        return x
    v = (rollouts.mean_RTCHW[:, s] - schedule.coef_x[s].item() * x) / schedule.coef_v[s].item()
    return x - schedule.sigma[s].item() * v


def make_maps(allocation: "Allocation", rollouts: "Rollouts", epoch: "Epoch") -> torch.Tensor | None:
    """The maps of the held rollouts and trained steps [R, T, H, W]; None for the scalar objective and for clean rollouts."""
    if allocation.source == "none" or rollouts.log_prob_RTHW is None:
        return None
    seen_RThw = rollouts.contrast_RThw if rollouts.raw_RTOhw is None else rollouts.raw_RTOhw[:, :, 0]
    steps, tokens = seen_RThw.shape[1], tuple(seen_RThw.shape[-2:])
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
        contrast_BThw=rollouts.contrast_RThw,
        reward_B=rollouts.reward_B[rollouts.row_R],
        group_B=rollouts.prompt_B[rollouts.row_R],
    )
    return allocation_map(allocation, seen, epoch.trained, noise_RThw)


class PointMaps:
    """Maps at noised points: attention is recorded in the old policy's pass at the very latents that the map weighs."""

    def __init__(self, session: "Session", epoch: "Epoch", rollouts: "Rollouts") -> None:
        self.allocation, self.epoch, self.rollouts = session.settings.allocation, epoch, rollouts
        self.geometry, self.device = session.learner.policy.model.geometry, session.learner.policy.device

    def recorder(self, rows_M: np.ndarray) -> Recorder | None:
        """What the old policy's pass is asked to record for some rollouts of the epoch."""
        return recorder_of(self.allocation, self.epoch, self.rollouts.prompt_B[rows_M])

    def at(self, index: int, rows_M: np.ndarray, recorder: Recorder | None) -> torch.Tensor | None:
        """The maps [M, H, W] at the samples' point number `index`; None for the scalar objective."""
        if self.allocation.source == "none":
            return None
        rollouts, tokens, places = self.rollouts, self.geometry.tokens, self.rollouts.places(rows_M)
        raw_M1Ohw = None if recorder is None else recorder.raw_maps().unflatten(-1, tokens)[:, None]
        noise_M1hw = None
        if self.allocation.control in ("random", "shuffled"):
            rngs = [rng("random map", self.epoch.seed, self.epoch.number, int(row), index) for row in rows_M]
            noise_M1hw = torch.stack([torch.randn((1, *tokens), generator=generator) for generator in rngs]).to(self.device)
        seen = Observation(
            samples=len(rows_M),
            steps=1,
            tokens=tokens,
            patch=self.geometry.patch,
            raw_BTOhw=raw_M1Ohw,
            region_Bhw=None if rollouts.region_Rhw is None else rollouts.region_Rhw[places].to(self.device),
            contrast_BThw=None if rollouts.contrast_RThw is None else rollouts.contrast_RThw[places].to(self.device),
            reward_B=rollouts.reward_B[rows_M],
            group_B=rollouts.prompt_B[rows_M],
        )
        return allocation_map(self.allocation, seen, range(1), noise_M1hw)[:, 0]
