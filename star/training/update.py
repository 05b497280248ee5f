"""The policy update: an objective's terms at its points, one backward pass a point, one optimizer step an update.

Shapes: B rollouts of the epoch, R rollouts held by this process, M micro-batch, T trained steps, C H W latents, h w token grid.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.time import shared_out
from star.errors import Diverged
from star.flow.seeding import rng
from star.models.attention import Recorder
from star.models.door import Text
from star.objectives.points import Point, Velocities
from star.training.learner import Learner
from star.training.maps import PointMaps
from star.training.metrics import Meter
from star.training.processes import Processes

if TYPE_CHECKING:
    from star.objectives.door import Objective
    from star.training.epoch import Epoch, Session
    from star.training.rollout import Rollouts

MicroBatch = tuple[np.ndarray, int]  # rows, and how many of them count


def kept_rollouts(objective: "Objective", advantage_B: np.ndarray) -> np.ndarray:
    """The places of the rollouts that an update learns from: all, or those that have an advantage."""
    return np.flatnonzero(advantage_B) if objective.drops_zero_advantage else np.arange(len(advantage_B))


def micro_batches(
    kept: np.ndarray, size: int, updates: int, *, seed: int, epoch: int, equal: bool = False
) -> list[list[MicroBatch]]:
    """Shuffle the kept rollouts into micro-batches of exactly `size` (rows, number that count), dealt to the updates.

    `equal`: every update has as many rollouts as the others, up to one. Else micro-batches are filled in turn, so that an
    update may have few, or fewer updates be made. A micro-batch is filled up with repeats that do not count: one batch shape
    keeps the ratio 1.
    """
    order = kept[torch.randperm(len(kept), generator=rng("update", seed, epoch)).numpy()]
    if equal:
        return [_filled(part, size) for part in np.array_split(order, max(1, min(updates, len(order)))) if len(part)]
    batches = _filled(order, size)
    return [batches[u::updates] for u in range(min(updates, len(batches)))]


def _filled(order: np.ndarray, size: int) -> list[MicroBatch]:
    """Rollouts cut into micro-batches, the last one filled up."""
    return [(np.resize(order[s : s + size], size), min(size, len(order) - s)) for s in range(0, len(order), size)]


def deal(batches: list[MicroBatch], processes: int) -> list[list[MicroBatch]]:
    """An update's micro-batches for every process, equally many: where they do not go round, repeats that do not count."""
    rounds = -(-len(batches) // processes)
    filled = batches + [(batches[0][0], 0)] * (rounds * processes - len(batches))
    return [filled[rank::processes] for rank in range(processes)]


def fetch(
    rollouts: "Rollouts",
    map_RTHW: torch.Tensor | None,
    *,
    trained: range,
    updates: list[list[list[MicroBatch]]],
    processes: Processes,
) -> tuple["Rollouts", torch.Tensor | None]:
    """The rollouts and maps that this process's micro-batches need, from the processes that sampled them.

    `updates` has every update's micro-batches by process. Only what the update reads comes along: the trained steps.
    """
    read = {name: getattr(rollouts, name) for name in ("latents_RSCHW", "region_Rhw", "contrast_RThw")}
    if rollouts.log_prob_RTHW is not None:
        read["latents_RSCHW"] = rollouts.latents_RSCHW[:, trained.start : trained.stop + 1]
        read["log_prob_RTHW"] = rollouts.log_prob_RTHW[:, trained.start : trained.stop]
    if rollouts.mean_RTCHW is not None:
        read["mean_RTCHW"] = rollouts.mean_RTCHW[:, trained.start : trained.stop]
    if processes.count == 1:
        return replace(rollouts, **read), map_RTHW
    wanted = [
        np.unique(np.concatenate([rows for update in updates for rows, _ in update[rank]])) for rank in range(processes.count)
    ]
    owner_B = np.empty(len(rollouts.prompt_B), int)
    for rank, row_R in enumerate(processes.gather(rollouts.row_R)):
        owner_B[row_R] = rank

    def exchanged(tensor_R: torch.Tensor) -> torch.Tensor:
        return processes.exchange(tensor_R, rollouts.row_R, wanted, owner_B)

    held = {name: None if tensor_R is None else exchanged(tensor_R) for name, tensor_R in read.items()}
    return replace(rollouts, **held, row_R=wanted[processes.rank]), None if map_RTHW is None else exchanged(map_RTHW)


def velocities_at(learner: Learner, point: Point, text: Text, *, asks: frozenset[str], recorder: Recorder | None) -> Velocities:
    """The policy's velocity at a point, with gradient, and what else is asked for; the old policy's pass is recorded."""
    policy, old, reference = learner.policy, None, None
    if "old" in asks:
        with torch.no_grad(), learner.old_policy():
            old = policy.velocity(point.x, point.sigma, text, recorder)
    if "reference" in asks:
        with torch.no_grad(), policy.reference():
            reference = policy.velocity(point.x, point.sigma, text)
    return Velocities(policy.velocity(point.x, point.sigma, text), old=old, reference=reference)


def accumulate(
    session: "Session",
    epoch: "Epoch",
    rollouts: "Rollouts",
    *,
    batches: list[MicroBatch],
    advantage_B: np.ndarray,
    map_RTHW: torch.Tensor | None,
) -> Meter:
    """Add the gradients of this process's micro-batches of one update, without a step; returns what was seen.

    The gradients are those of this process's share of the mean; `Processes.add_gradients` sums the shares. Raises Preempted
    when asked to stop.
    """
    learner, objective, processes = session.learner, session.objective, session.processes
    device, maps = learner.policy.device, PointMaps(session, epoch, rollouts) if not objective.noisy else None
    by_trajectory = session.settings.allocation.normalisation == "per_trajectory"
    share_RT = shared_out(epoch.weights, map_RTHW if by_trajectory else None).expand(len(rollouts.row_R), -1)
    total = sum(processes.gather(sum(count for _, count in batches))) * objective.points_a_sample(epoch.trained)
    meter = Meter(epoch.number)
    for rows_M, count in batches:
        processes.stop_if_asked()
        prompt_M = rollouts.prompt_B[rows_M]
        text, prompts = epoch.text[torch.from_numpy(prompt_M)], [epoch.prompts[p].text for p in prompt_M]
        advantage_M = torch.from_numpy(advantage_B[rows_M]).float().to(device)
        weight_M = (torch.arange(len(rows_M), device=device) < count).float() / total
        for point in objective.points(epoch, rollouts, rows_M):
            point = point.to(device)
            recorder = None if maps is None else maps.recorder(rows_M)
            velocities = velocities_at(learner, point, text, asks=objective.asks, recorder=recorder)
            if maps is not None:
                map_MHW = maps.at(point.index, rows_M, recorder)
            else:
                map_MHW = None if map_RTHW is None else map_RTHW[rollouts.places(rows_M), point.index].to(device)
            terms = objective.terms(point, velocities=velocities, advantage_M=advantage_M, map_MHW=map_MHW)
            sums = {name: (part_M * weight_M).sum() for name, (_, part_M) in terms.parts.items()}
            share_M = share_RT[rollouts.places(rows_M), point.index].to(device)
            shared = sums | {"policy_loss": (terms.parts["policy_loss"][1] * weight_M * share_M).sum()}
            loss = sum(weight * shared[name] for name, (weight, _) in terms.parts.items())
            norm, signal = learner.backward(loss, point.step)
            meter.add_gradient(norm, signal, count=count, total=total, step=point.step)
            meter.add(terms, sums | {"loss": loss}, count=count, total=total, step=point.step, prompts=prompts)
    return meter


def update_policy(
    session: "Session",
    epoch: "Epoch",
    rollouts: "Rollouts",
    *,
    advantage_B: np.ndarray,
    map_RTHW: torch.Tensor | None,
    expect_ratio_one: bool,
) -> dict[str, float]:
    """One epoch's optimizer steps; returns means of what metrics.jsonl says of an update (docs/method.md).

    `map_RTHW` has the maps of the trained steps. Rollouts of zero advantage are dropped where the objective says so. With
    `expect_ratio_one` every ratio of the first optimizer step must be 1, exactly on a CPU and within a tenth of the clip range
    or 1e-5 on a GPU, else RuntimeError: rollout and update then do not see the same numbers. Raises Diverged on a loss or
    gradient that is not finite, before the weights are touched, and Preempted when asked to stop.
    """
    settings, learner, objective, processes = session.settings, session.learner, session.objective, session.processes
    training = settings.training
    batches = micro_batches(
        kept_rollouts(objective, advantage_B),
        settings.rollout.batch,
        training.updates_per_epoch,
        seed=epoch.seed,
        epoch=epoch.number,
        equal=training.equal_updates,
    )
    updates = [deal(of_update, processes.count) for of_update in batches]
    if not updates:  # every group's rewards are equal: nothing to learn from
        return objective.idle | {"grad_norm": 0.0, "update_norm": 0.0, "gradient_signal": None}
    rollouts, map_RTHW = fetch(rollouts, map_RTHW, trained=epoch.trained, updates=updates, processes=processes)
    seen = Meter(epoch.number)
    for u, dealt in enumerate(updates):
        meter = accumulate(session, epoch, rollouts, batches=dealt[processes.rank], advantage_B=advantage_B, map_RTHW=map_RTHW)
        if why := processes.first(meter.not_finite()):  # all or none leaves
            raise Diverged(why)
        if expect_ratio_one and u == 0:
            meter.require_ratio_one(objective.ratio_off_one if learner.policy.device.type == "cuda" else 0.0)
        if learner.measures:
            steps = epoch.trained if objective.noisy else range(len(epoch.weights))
            learner.join_steps(dict(zip(steps, epoch.weights, strict=True)), processes.add_gradients)
        else:
            processes.add_gradients(learner.parameters)
        if (signal := learner.signal()) is not None:
            meter.note(gradient_signal=signal)
        grad_norm, update_norm = learner.step(epoch.number)
        meter.note(grad_norm=grad_norm, update_norm=update_norm)
        seen.extend(meter)
    return objective.idle | {"gradient_signal": None} | seen.row(processes)
