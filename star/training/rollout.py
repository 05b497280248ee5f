"""One epoch's rollouts: prompts drawn, images sampled with noise, rewards computed beside the sampling.

Shapes: B rollouts of the epoch, R rollouts held by this process, T steps, S = T + 1 latents, O recorded blocks, C H W latents,
h w token grid.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from star.allocation.spread import token_shares
from star.config import Rollout
from star.errors import Diverged
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import generator, noise
from star.models.sd3 import Encoded, Generator, Trajectory
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training.processes import Processes


@dataclass(frozen=True)
class Rollouts:
    """The epoch: prompts (index into the epoch's) and rewards of all rollouts, trajectories of those that this process holds.

    `reward_B` is the weighted sum of `scorer_B`, the rewards by scorer.

    `row_R` has the places of the held ones in the epoch. Trajectories lie on the CPU. `region_Rhw` is the share of every token
    that the picture's true objects cover, where the world can tell.
    """

    latents_RSCHW: torch.Tensor
    log_prob_RTHW: torch.Tensor
    raw_RTOhw: torch.Tensor | None
    region_Rhw: torch.Tensor | None
    row_R: np.ndarray
    prompt_B: np.ndarray
    reward_B: np.ndarray
    scorer_B: dict[str, np.ndarray]
    seconds_rollout: float
    seconds_reward: float

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the trajectories of some rollouts of the epoch lie; `row_R` is in ascending order."""
        return np.searchsorted(self.row_R, rows)


def last_trained(rollout: Rollout) -> int:
    """One more than the last step that may be trained."""
    whole = int(rollout.steps * rollout.trained_fraction)
    return whole if rollout.window is None or rollout.window_range is None else rollout.window_range[1]


def trained_steps(rollout: Rollout, seed: int, epoch: int) -> range:
    """The steps that are noisy and trained this epoch: all but the last share, or a window drawn for the epoch."""
    last = last_trained(rollout)
    if rollout.window is None:
        return range(last)
    first = 0 if rollout.window_range is None else rollout.window_range[0]
    start = torch.randint(first, last - rollout.window + 1, (), generator=generator("window", seed, epoch))
    return range(int(start), int(start) + rollout.window)


def epoch_schedule(policy: Generator, rollout: Rollout, steps: range) -> Schedule:
    """Noise on every step, or only on the window's."""
    noisy = None if rollout.window is None else steps
    return make_schedule(policy.pipe.scheduler, rollout.steps, rollout.noise_level, noisy, rollout.sampler)


def draw_prompts(count: int, total: int, seed: int, epoch: int) -> list[int]:
    """`count` different prompts of `total` for one epoch."""
    return torch.randperm(total, generator=generator("prompts", seed, epoch))[:count].tolist()


def sample_epoch(
    policy: Generator,
    rollout: Rollout,
    schedule: Schedule,
    records: list[Prompt],
    ids: list[int],
    prompts: Encoded,
    empty: Encoded | None,
    pool: RewardPool,
    processes: Processes,
    seed: int,
    epoch: int,
    record_maps: bool,
    regions_of: Callable[[list[np.ndarray]], list[np.ndarray] | None],
) -> Rollouts:
    """Sample `group_size` images of each of the epoch's prompts and reward them; every process has its share of the batches.

    `records[i]` has index `ids[i]` in the training set, which names its noise. `regions_of` gives the true masks of pictures'
    objects, bool [height, width] each, or None. Raises Diverged on latents or rewards that are not finite, Preempted when
    asked to stop.
    """
    began = time.perf_counter()
    prompt_B = np.repeat(np.arange(len(records)), rollout.group_size)
    shape = (rollout.steps + 1, *policy.latent_shape())
    parts: list[Trajectory] = []
    rewards, regions = [], []
    batches = processes.share(np.arange(len(prompt_B)).reshape(-1, rollout.batch))
    for rows in batches:
        processes.stop_if_asked()
        asked = prompt_B[rows]
        noises = [
            noise(shape, "rollout", seed, epoch, ids[p], b % rollout.group_size) for b, p in zip(rows, asked, strict=True)
        ]
        if rollout.same_start:
            for one, p in zip(noises, asked, strict=True):
                one[0] = noise(shape[1:], "start", seed, epoch, ids[p])
        text, twins = prompts[torch.from_numpy(asked)], asked if rollout.same_start else None
        batch = policy.sample(torch.stack(noises), text, empty, schedule, record_maps, twins)
        _require_finite_latents(batch.latents_BSCHW, [records[p] for p in asked], epoch)
        pictures = policy.decode(batch.latents_BSCHW[:, -1])
        rewards.append(pool.submit(pictures, [records[p] for p in asked]))
        if record_maps and (masks := regions_of(pictures)) is not None:
            regions.append(token_shares(masks, batch.raw_BTOhw.shape[-2:]))
        parts.append(Trajectory(*(None if x is None else x.cpu() for x in vars(batch).values())))
    sampled = time.perf_counter()
    scored = [future.result() for future in rewards]
    done = time.perf_counter()
    row_R = np.concatenate(batches)
    columns_RN = np.concatenate([np.column_stack([reward, *each.values()]) for reward, each in scored])
    reward_B, *each_NB = np.ascontiguousarray(processes.in_order(torch.from_numpy(columns_RN), row_R).numpy().T)
    if not np.isfinite(reward_B).all():
        b = int(np.flatnonzero(~np.isfinite(reward_B))[0])
        prompt = records[prompt_B[b]].text
        raise Diverged(f"reward is {reward_B[b]} (epoch {epoch}, prompt {prompt!r}); weights are untouched")
    return Rollouts(
        torch.cat([p.latents_BSCHW for p in parts]),
        torch.cat([p.log_prob_BTHW for p in parts]),
        torch.cat([p.raw_BTOhw for p in parts]) if record_maps else None,
        torch.cat(regions) if regions else None,
        row_R,
        prompt_B,
        reward_B,
        dict(zip(scored[0][1], each_NB, strict=True)),
        seconds_rollout=sampled - began,
        seconds_reward=done - sampled,
    )


def _require_finite_latents(latents_BSCHW: torch.Tensor, records: list[Prompt], epoch: int) -> None:
    finite_BS = latents_BSCHW.isfinite().all(-1).all(-1).all(-1)
    if not finite_BS.all():
        s, b = min((s, b) for b, s in (~finite_BS).nonzero().tolist())  # the first step that went wrong
        raise Diverged(
            f"latents are not finite after denoising step {s - 1} (epoch {epoch}, prompt {records[b].text!r}); "
            "weights are untouched"
        )
