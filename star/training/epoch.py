"""One epoch: prompts -> rollouts -> rewards -> advantages -> maps -> objective -> update.

Shapes: B rollouts of the epoch, R rollouts held by this process, T trained steps, H W latents.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from star.allocation.columns import CoreColumns, core_columns
from star.allocation.sources import recorded_blocks
from star.allocation.time import step_weights
from star.config import Rollout, RunSettings
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import rng
from star.models.door import Text
from star.objectives.advantages import combined_advantages, correlations
from star.objectives.door import Objective
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training.learner import Learner
from star.training.maps import make_maps, with_contrast
from star.training.metrics import map_diagnostics, peak_memory, time_diagnostics
from star.training.processes import Processes
from star.training.rollout import Rollouts, sample_rollouts
from star.training.update import update_policy


@dataclass(frozen=True)
class Session:
    """What stays the same over the epochs of a training."""

    settings: RunSettings
    seed: int
    prompts: Sequence[Prompt]
    learner: Learner
    objective: Objective
    pool: RewardPool
    processes: Processes
    regions: Callable[[Sequence[np.ndarray], Sequence[Prompt]], list[np.ndarray] | None]  # true objects; None: nobody knows


@dataclass(frozen=True)
class Epoch:
    """What an epoch's rollouts and update share, made once: prompts drawn, encoded, and the steps that are trained.

    `ids` are the prompts' places in the training set, spare ones last; with seed and number they name all noise. `columns` are
    there when maps of attention are made. `weights` are those of the trained steps, or of the times of an objective that has
    no steps.
    """

    seed: int
    number: int
    prompts: list[Prompt]
    ids: list[int]
    text: Text
    columns: CoreColumns | None
    schedule: Schedule
    trained: range
    weights: list[float]


def last_trained(rollout: Rollout) -> int:
    """One more than the last step that may be trained."""
    whole = int(rollout.steps * rollout.trained_fraction)
    return whole if rollout.window is None or rollout.window_range is None else rollout.window_range[1]


def trainable_steps(rollout: Rollout) -> range:
    """The steps that may be trained in some epoch."""
    windowed = rollout.window is not None and rollout.window_range is not None
    return range(rollout.window_range[0] if windowed else 0, last_trained(rollout))


def trained_steps(rollout: Rollout, seed: int, epoch: int) -> range:
    """The steps that are noisy and trained this epoch: all but the last share, or a window drawn for the epoch."""
    steps = trainable_steps(rollout)
    if rollout.window is None:
        return steps
    start = torch.randint(steps.start, steps.stop - rollout.window + 1, (), generator=rng("window", seed, epoch))
    return range(int(start), int(start) + rollout.window)


def weighted_steps(settings: RunSettings, objective: Objective) -> range:
    """What has weights in time: the steps that may be trained, or an objective's times where it has no steps."""
    steps = trainable_steps(settings.rollout)
    return steps if objective.noisy else range(objective.points_a_sample(steps))


def measured_steps(settings: RunSettings, objective: Objective) -> int:
    """Of how many steps, from the first, signal and noise are measured; 0 where weights follow from the settings alone."""
    ruled = isinstance(settings.allocation.time, str) and settings.allocation.time != "equal"
    return weighted_steps(settings, objective).stop if ruled else 0


def _weights(session: "Session", trained: range, sigmas: torch.Tensor) -> list[float]:
    """The weights of an epoch's trained steps or times, by what was measured before it."""
    settings, objective = session.settings, session.objective
    rollout, steps = settings.rollout, weighted_steps(settings, objective)
    every = make_schedule(sigmas, noise_level=rollout.noise_level, sampler=rollout.sampler)  # noise in every step
    predicted = np.array([objective.gradient_scale(every, step) for step in range(steps.stop)])
    of_epoch = trained if objective.noisy else steps
    measured = session.learner.measured
    return step_weights(settings.allocation.time, of_epoch, first=steps.start, predicted=predicted, measured=measured)


def draw_prompts(count: int, total: int, seed: int, epoch: int) -> list[int]:
    """`count` different prompts of `total` for one epoch."""
    return torch.randperm(total, generator=rng("prompts", seed, epoch))[:count].tolist()


def prepare_epoch(session: Session, number: int) -> Epoch:
    """Draw and encode the epoch's prompts and choose its trained steps."""
    rollout, allocation, model = session.settings.rollout, session.settings.allocation, session.learner.policy.model
    ids = draw_prompts(rollout.groups + rollout.spare_groups, len(session.prompts), session.seed, number)
    prompts = [session.prompts[i] for i in ids]
    trained = trained_steps(rollout, session.seed, number)
    noisy = None if rollout.window is None else trained  # without a window every step has noise
    sigmas = model.sigmas(rollout.steps)
    return Epoch(
        seed=session.seed,
        number=number,
        prompts=prompts,
        ids=ids,
        text=model.encode([prompt.text for prompt in prompts]),
        columns=core_columns(model, prompts, allocation.tokens) if recorded_blocks(allocation) else None,
        schedule=make_schedule(sigmas, noise_level=rollout.noise_level, noisy=noisy, sampler=rollout.sampler),
        trained=trained,
        weights=_weights(session, trained, sigmas),
    )


def advantages(session: Session, rollouts: Rollouts) -> np.ndarray:
    """One advantage a rollout of the epoch, float64 [B], of its rewards by all scorers."""
    settings = session.settings
    return combined_advantages(
        rollouts.scorer_B,
        rollouts.prompt_B,
        weights=settings.reward,
        combination=settings.training.reward_combination,
        rule=session.objective.advantages,
    )


def run_epoch(session: Session, number: int, first: bool) -> dict:
    """One epoch, the `first` since the run was started or not; returns its line of metrics.jsonl.

    Raises Diverged, Preempted and ScorerFailed; the weights are then what they were before the failing update.
    """
    settings, processes = session.settings, session.processes
    processes.stop_if_asked()

    # Prompts, rollouts and their rewards.
    epoch = prepare_epoch(session, number)
    rollouts = sample_rollouts(session, epoch)

    # Advantages and maps.
    began = time.perf_counter()
    advantage_B = advantages(session, rollouts)
    rollouts = with_contrast(settings.allocation, rollouts, session=session, epoch=epoch, reward_B=advantage_B)
    map_RTHW = make_maps(settings.allocation, rollouts, epoch)
    mapped = time.perf_counter()

    # The update.
    row = update_policy(session, epoch, rollouts, advantage_B=advantage_B, map_RTHW=map_RTHW, expect_ratio_one=first)
    session.objective.end_epoch(session.learner, number)
    updated = time.perf_counter()

    return {
        "epoch": number,
        **row,
        "reward_mean": rollouts.sampled_N.mean(),
        "reward_std": rollouts.sampled_N.std(),
        **_by_scorer(rollouts, advantage_B),
        "zero_advantage_share": float((advantage_B == 0).mean()),
        "images": len(rollouts.sampled_N),
        **time_diagnostics(session, epoch),
        **map_diagnostics(map_RTHW, rollouts, recorded_blocks(settings.allocation), processes),
        "seconds_rollout": rollouts.seconds_rollout,
        "seconds_reward": rollouts.seconds_reward,
        "seconds_maps": mapped - began,
        "seconds_update": updated - mapped,
        "peak_memory_bytes": max(processes.gather(peak_memory(session.learner.policy.device))),
    }


def _by_scorer(rollouts: Rollouts, advantage_B: np.ndarray) -> dict[str, float | None]:
    """Every scorer's mean reward; of several also the deviation, and how far the advantages follow it."""
    sampled = rollouts.sampled_scorer_N
    row = {f"reward_{scorer}": each_N.mean() for scorer, each_N in sampled.items()}
    if len(sampled) > 1:
        row |= {f"reward_std_{scorer}": each_N.std() for scorer, each_N in sampled.items()}
        followed = correlations(advantage_B, rollouts.scorer_B, rollouts.prompt_B)
        row |= {f"advantage_correlation_{scorer}": value for scorer, value in followed.items()}
    return row
