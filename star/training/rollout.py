"""An epoch's rollouts: images sampled with noise, every process its share, rewards computed beside the sampling.

Shapes: B rollouts of the epoch, N sampled images, K reward and scorers, R rollouts held by this process, T steps,
S = T + 1 latents, O recorded blocks, C H W latents, h w token grid.
"""

import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.spread import token_shares
from star.errors import Diverged
from star.flow.sampler import Trajectory, denoise
from star.flow.seeding import noise
from star.flow.solver import solve
from star.training.maps import needs_means, recorder_of

if TYPE_CHECKING:
    from star.prompts.record import Prompt
    from star.training.epoch import Epoch, Session


@dataclass(frozen=True)
class Rollouts:
    """The epoch: prompts (index into the epoch's) and rewards of all rollouts, latents of those that this process holds.

    `reward_B` is the weighted sum of `scorer_B`, the rewards by scorer. `row_R` has the places of the held ones in the epoch.
    Latents lie on the CPU: of noisy rollouts the whole trajectories, of clean ones the last alone (S = 1, T = 0). `region_Rhw`
    is the share of every token that the picture's true objects cover, where the world can tell. `sampled_N` and
    `sampled_scorer_N` are the rewards of all images that were sampled, of groups that others took the place of too.
    `contrast_RThw` is there once groups were compared (star/training/maps.py).
    """

    latents_RSCHW: torch.Tensor
    log_prob_RTHW: torch.Tensor | None
    raw_RTOhw: torch.Tensor | None
    mean_RTCHW: torch.Tensor | None
    region_Rhw: torch.Tensor | None
    row_R: np.ndarray
    prompt_B: np.ndarray
    reward_B: np.ndarray
    scorer_B: dict[str, np.ndarray]
    sampled_N: np.ndarray
    sampled_scorer_N: dict[str, np.ndarray]
    seconds_rollout: float
    seconds_reward: float
    contrast_RThw: torch.Tensor | None = None

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the trajectories of some rollouts of the epoch lie; `row_R` is in ascending order."""
        return np.searchsorted(self.row_R, rows)


def sample_rollouts(session: "Session", epoch: "Epoch") -> Rollouts:
    """Sample `group_size` images of each of the epoch's `groups` prompts and reward them.

    They are the current policy's, or the old one's where the objective asks for it. Where all images of a group got the same
    reward, the epoch's spare prompts are sampled too, and their groups take the places of such groups.

    Raises Diverged on latents or rewards that are not finite, Preempted when asked to stop.
    """
    rollout = session.settings.rollout
    rollouts = _sample_groups(session, epoch, range(rollout.groups))
    if rollout.spare_groups and len(_equal_groups(rollouts, rollout.group_size)):
        spare = _sample_groups(session, epoch, range(rollout.groups, len(epoch.prompts)))
        rollouts = with_spare_groups(rollouts, spare, size=rollout.group_size)
    return rollouts


def _equal_groups(rollouts: Rollouts, size: int, equal: bool = True) -> np.ndarray:
    """Places of the groups whose rewards are all equal, or of the others."""
    return np.flatnonzero((np.ptp(rollouts.reward_B.reshape(-1, size), axis=1) == 0) == equal)


def with_spare_groups(rollouts: Rollouts, spare: Rollouts, *, size: int) -> Rollouts:
    """Groups of `spare` whose rewards differ, in place of groups of `size` rollouts whose rewards are all equal, in order."""
    pairs = list(zip(_equal_groups(rollouts, size), _equal_groups(spare, size, equal=False), strict=False))
    source_B = np.arange(len(rollouts.reward_B))  # where a rollout comes from; those of `spare` are counted on
    for place, taken in pairs:
        source_B[place * size : (place + 1) * size] = len(source_B) + taken * size + np.arange(size)
    held_R = np.concatenate([rollouts.row_R, len(source_B) + spare.row_R])
    row_R = np.flatnonzero(np.isin(source_B, held_R))
    order = np.argsort(held_R)
    index_R = torch.from_numpy(order[np.searchsorted(held_R, source_B[row_R], sorter=order)])

    def of_both(name: str) -> torch.Tensor | None:
        first, second = getattr(rollouts, name), getattr(spare, name)
        return None if first is None else torch.cat([first, second])[index_R]

    all_scorer_N = {scorer: np.concatenate([each_B, spare.scorer_B[scorer]]) for scorer, each_B in rollouts.scorer_B.items()}
    return Rollouts(
        **{name: of_both(name) for name in ("latents_RSCHW", "log_prob_RTHW", "raw_RTOhw", "mean_RTCHW", "region_Rhw")},
        row_R=row_R,
        prompt_B=np.concatenate([rollouts.prompt_B, spare.prompt_B])[source_B],
        reward_B=np.concatenate([rollouts.reward_B, spare.reward_B])[source_B],
        scorer_B={scorer: each_N[source_B] for scorer, each_N in all_scorer_N.items()},
        sampled_N=np.concatenate([rollouts.sampled_N, spare.sampled_N]),
        sampled_scorer_N=all_scorer_N,
        seconds_rollout=rollouts.seconds_rollout + spare.seconds_rollout,
        seconds_reward=rollouts.seconds_reward + spare.seconds_reward,
    )


def _sample_groups(session: "Session", epoch: "Epoch", prompts: range) -> Rollouts:
    """The rollouts of some of the epoch's prompts, by their places; every process has its share of the batches."""
    rollout, processes = session.settings.rollout, session.processes
    model = session.learner.policy.model
    began = time.perf_counter()
    prompt_B = np.repeat(np.array(prompts), rollout.group_size)
    batches = processes.share(np.arange(len(prompt_B)).reshape(-1, rollout.batch))

    # Sample, and have each batch scored while the next is sampled.
    parts: list[Trajectory] = []
    shares: list[torch.Tensor] = []
    scored: list[Future] = []
    for rows in batches:
        processes.stop_if_asked()
        prompts = [epoch.prompts[p] for p in prompt_B[rows]]
        with session.learner.old_policy() if session.objective.sampled_by_old else nullcontext():
            batch = _sample_batch(session, epoch, rows, prompt_B[rows])
        if why := processes.first(_not_finite(batch.latents_BSCHW, prompts, epoch.number)):  # all or none leaves
            raise Diverged(why)
        pictures = model.decode(batch.latents_BSCHW[:, -1])
        scored.append(session.pool.submit(pictures, prompts))
        if session.settings.allocation.source != "none" and (masks := session.regions(pictures, prompts)) is not None:
            shares.append(token_shares(masks, model.geometry.tokens))
        parts.append(Trajectory(*(None if x is None else x.cpu() for x in vars(batch).values())))
    sampled = time.perf_counter()

    # Rewards of all processes, in the epoch's order.
    rewards = [future.result() for future in scored]
    done = time.perf_counter()
    row_R = np.concatenate(batches)
    columns_RK = np.concatenate([np.column_stack([reward, *each.values()]) for reward, each in rewards])
    reward_B, *each_KB = np.ascontiguousarray(processes.in_order(torch.from_numpy(columns_RK), row_R).numpy().T)
    if not np.isfinite(reward_B).all():
        b = int(np.flatnonzero(~np.isfinite(reward_B))[0])
        text = epoch.prompts[prompt_B[b]].text
        raise Diverged(f"reward is {reward_B[b]} (epoch {epoch.number}, prompt {text!r}); weights are untouched")
    scorer_B = dict(zip(rewards[0][1], each_KB, strict=True))
    return Rollouts(
        latents_RSCHW=torch.cat([p.latents_BSCHW for p in parts]),
        log_prob_RTHW=_joined([p.log_prob_BTHW for p in parts]),
        raw_RTOhw=_joined([p.raw_BTOhw for p in parts]),
        mean_RTCHW=_joined([p.mean_BTCHW for p in parts]),
        region_Rhw=torch.cat(shares) if shares else None,
        row_R=row_R,
        prompt_B=prompt_B,
        reward_B=reward_B,
        scorer_B=scorer_B,
        sampled_N=reward_B,
        sampled_scorer_N=scorer_B,
        seconds_rollout=sampled - began,
        seconds_reward=done - sampled,
    )


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    return None if parts[0] is None else torch.cat(parts)


def _sample_batch(session: "Session", epoch: "Epoch", rows: np.ndarray, prompt_B: np.ndarray) -> Trajectory:
    """Some rollouts of the epoch's prompts `prompt_B`, with the noise that (seed, epoch, prompt, rollout) name."""
    rollout, model = session.settings.rollout, session.learner.policy.model
    shape = (rollout.steps + 1 if session.objective.noisy else 1, *model.geometry.latents)
    noises = []
    for row, p in zip(rows, prompt_B, strict=True):
        one = noise(shape, "rollout", epoch.seed, epoch.number, epoch.ids[p], row % rollout.group_size)
        if rollout.same_start:
            one[0] = noise(shape[1:], "start", epoch.seed, epoch.number, epoch.ids[p])
        noises.append(one)
    place_B = torch.from_numpy(prompt_B)
    if not session.objective.noisy:
        sigmas = model.sigmas(rollout.steps)
        x0_BCHW = solve(
            model, torch.cat([one[:1] for one in noises]), text=epoch.text[place_B], sigmas=sigmas, solver=rollout.solver
        )
        return Trajectory(x0_BCHW[:, None], log_prob_BTHW=None, raw_BTOhw=None)
    trajectory = denoise(
        model,
        torch.stack(noises),
        text=epoch.text[place_B],
        schedule=epoch.schedule,
        recorder=recorder_of(session.settings.allocation, epoch, prompt_B),
        twin_B=prompt_B if rollout.same_start else None,
    )
    kept = session.objective.keeps_old_means or needs_means(session.settings.allocation)
    return trajectory if kept else replace(trajectory, mean_BTCHW=None)


def _not_finite(latents_BSCHW: torch.Tensor, prompts: "list[Prompt]", epoch: int) -> str | None:
    """What is said of latents that are not finite; None where all are."""
    finite_BS = latents_BSCHW.isfinite().all(-1).all(-1).all(-1)
    if finite_BS.all():
        return None
    s, b = min((s, b) for b, s in (~finite_BS).nonzero().tolist())  # the first step that went wrong
    return (
        f"latents are not finite after denoising step {s - 1} (epoch {epoch}, prompt {prompts[b].text!r}); "
        "weights are untouched"
    )
