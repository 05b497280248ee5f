"""The policy update: clipped loss with allocated log-probabilities, KL to the reference, one backward a step.

Shapes: B rollouts of the epoch, R rollouts held by this process, M micro-batch, T trained steps, C H W latents, h w token grid.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from star.config import FlowGrpo
from star.errors import Diverged
from star.flow.schedule import Schedule, log_prob, reference_kl, step_mean
from star.flow.seeding import generator
from star.models.sd3 import Encoded
from star.objectives.flow_grpo import allocate, clipped_loss, clipped_loss_by_location
from star.prompts.record import Prompt
from star.training.learner import Learner
from star.training.processes import Processes
from star.training.rollout import Rollouts

MicroBatch = tuple[np.ndarray, int]  # rows, and how many of them count


def micro_batches(kept: np.ndarray, size: int, updates: int, seed: int, epoch: int) -> list[list[MicroBatch]]:
    """Shuffle the kept rollouts into micro-batches of exactly `size` (rows, number that count), dealt to the updates.

    The last micro-batch is filled up with repeats that do not count: one batch shape keeps the ratio 1.
    """
    order = kept[torch.randperm(len(kept), generator=generator("update", seed, epoch)).numpy()]
    starts = range(0, len(order), size)
    batches = [(np.resize(order[s : s + size], size), min(size, len(order) - s)) for s in starts]
    return [batches[u::updates] for u in range(min(updates, len(batches)))]


def deal(batches: list[MicroBatch], processes: int) -> list[list[MicroBatch]]:
    """An update's micro-batches for every process, equally many: where they do not go round, repeats that do not count."""
    rounds = -(-len(batches) // processes)
    filled = batches + [(batches[0][0], 0)] * (rounds * processes - len(batches))
    return [filled[rank::processes] for rank in range(processes)]


def fetch(
    rollouts: Rollouts, map_RTHW: torch.Tensor | None, steps: range, updates: list[list[list[MicroBatch]]], processes: Processes
) -> tuple[Rollouts, torch.Tensor | None]:
    """The rollouts and maps that this process's micro-batches need, from the processes that sampled them.

    `updates` has every update's micro-batches by process. Only what the update reads comes along: the trained steps.
    """
    latents = rollouts.latents_RSCHW[:, steps.start : steps.stop + 1]
    log_prob_RTHW = rollouts.log_prob_RTHW[:, steps.start : steps.stop]
    if processes.count == 1:
        return replace(rollouts, latents_RSCHW=latents, log_prob_RTHW=log_prob_RTHW), map_RTHW
    wanted = [
        np.unique(np.concatenate([rows for update in updates for rows, _ in update[rank]])) for rank in range(processes.count)
    ]
    owner_B = np.empty(len(rollouts.prompt_B), int)
    for rank, row_R in enumerate(processes.gather(rollouts.row_R)):
        owner_B[row_R] = rank

    def exchanged(tensor_R: torch.Tensor) -> torch.Tensor:
        return processes.exchange(tensor_R, rollouts.row_R, wanted, owner_B)

    fetched = replace(
        rollouts, latents_RSCHW=exchanged(latents), log_prob_RTHW=exchanged(log_prob_RTHW), row_R=wanted[processes.rank]
    )
    return fetched, None if map_RTHW is None else exchanged(map_RTHW)


def update_policy(
    learner: Learner,
    objective: FlowGrpo,
    schedule: Schedule,
    steps: range,
    rollouts: Rollouts,
    map_RTHW: torch.Tensor | None,
    advantage_B: np.ndarray,
    records: list[Prompt],
    prompts: Encoded,
    empty: Encoded | None,
    processes: Processes,
    *,
    batch: int,
    updates_per_epoch: int,
    seed: int,
    epoch: int,
    expect_ratio_one: bool,
) -> dict[str, float]:
    """One epoch's optimizer steps; returns means of what metrics.jsonl says of an update (docs/method.md).

    `map_RTHW` has the maps of `steps`, `records` and `prompts` the epoch's prompts. The approximate KL to the rollout's policy
    is mean(ratio - 1 - log ratio).

    Rollouts of zero advantage are dropped. With `expect_ratio_one` every ratio of the first optimizer step must be 1, exactly
    on a CPU and within a tenth of the clip range or 1e-5 on a GPU, else RuntimeError: rollout and update then do not see the
    same numbers. Raises Diverged on a loss or gradient that is not finite, before the weights are touched, and Preempted
    when asked to stop.
    """
    policy, device = learner.policy, learner.policy.device
    clip_range = objective.location_clip_range if objective.form == "per_location" else objective.clip_range
    # a GPU may round a row by its place in the batch: some 3e-6 if bfloat16 rounded every velocity differently (estimate)
    allowed = max(clip_range / 10, 1e-5) if device.type == "cuda" else 0.0
    kept = np.flatnonzero(advantage_B)
    updates = [deal(b, processes.count) for b in micro_batches(kept, batch, updates_per_epoch, seed, epoch)]
    if not updates:  # every group's rewards are equal: nothing to learn from
        at_one = dict.fromkeys(("ratio_mean", "ratio_min", "ratio_max"), 1.0)
        nothing = (
            "loss",
            "policy_loss",
            "kl",
            "approximate_kl",
            "clip_fraction",
            "grad_norm",
            "update_norm",
            "ratio_max_deviation",
        )
        return at_one | dict.fromkeys(nothing, 0.0)
    rollouts, map_RTHW = fetch(rollouts, map_RTHW, steps, updates, processes)
    seen: dict[str, list[float]] = defaultdict(list)
    for u, dealt in enumerate(updates):
        total = sum(count for batches in dealt for _, count in batches) * len(steps)
        for rows_M, count in dealt[processes.rank]:
            prompt_M, place_M = rollouts.prompt_B[rows_M], rollouts.places(rows_M)
            prompt = prompts[torch.from_numpy(prompt_M)]
            advantage_M = torch.from_numpy(advantage_B[rows_M]).float().to(device)
            weight_M = (torch.arange(batch, device=device) < count).float() / total
            for s, t in enumerate(steps):
                processes.stop_if_asked()
                x, x_next = (rollouts.latents_RSCHW[place_M, i].to(device) for i in (s, s + 1))
                map_MHW = None if map_RTHW is None else map_RTHW[place_M, s].to(device)
                sigma = schedule.sigma[t].item()
                v = policy.velocity(x, sigma, prompt, empty)
                mean = step_mean(schedule, t, x, v)
                new_MHW = log_prob(schedule, t, x_next, mean)
                old_MHW = rollouts.log_prob_RTHW[place_M, s].to(device)
                if objective.form == "per_location":
                    loss_M, ratio = clipped_loss_by_location(advantage_M, new_MHW, old_MHW, map_MHW, clip_range)
                else:
                    new_M, old_M = allocate(new_MHW, map_MHW), allocate(old_MHW, map_MHW)
                    loss_M, ratio = clipped_loss(advantage_M, new_M, old_M, clip_range)
                kl_M = None
                if objective.kl_weight > 0:
                    with torch.no_grad(), policy.reference():
                        reference = step_mean(schedule, t, x, policy.velocity(x, sigma, prompt, empty))
                    kl_M = reference_kl(schedule, t, mean, reference)
                for name, value_M in (("policy loss", loss_M), ("KL to the base", kl_M)):
                    _require_finite(name, value_M, [records[p].text for p in prompt_M], epoch, t)
                deviation = (ratio.detach() - 1).abs().max().item()
                if expect_ratio_one and u == 0 and deviation > allowed:
                    raise RuntimeError(f"ratio off 1 by {deviation:.1e} before the first update (epoch {epoch}, step {t})")
                policy_loss = (loss_M * weight_M).sum()
                kl = 0.0 if kl_M is None else (kl_M * weight_M).sum()
                loss = policy_loss + objective.kl_weight * kl
                learner.backward(loss)
                if count == 0:
                    continue
                per_sample = total / count
                seen["loss"].append(loss.item() * per_sample)
                seen["policy_loss"].append(policy_loss.item() * per_sample)
                seen["kl"].append(0.0 if kl_M is None else kl.item() * per_sample)
                counted = ratio.detach()[:count]
                seen["ratio_mean"].append(counted.mean().item())
                seen["ratio_min"].append(counted.min().item())
                seen["ratio_max"].append(counted.max().item())
                seen["approximate_kl"].append((counted - 1 - counted.log()).mean().item())
                seen["clip_fraction"].append(((counted - 1).abs() > clip_range).float().mean().item())
        processes.add_gradients(learner.parameters)
        grad_norm, update_norm = learner.step(epoch)
        seen["grad_norm"].append(grad_norm)
        seen["update_norm"].append(update_norm)
    everyones = processes.gather(dict(seen))  # the first process always has a micro-batch that counts, others may have none
    seen = {name: [v for one in everyones for v in one.get(name, [])] for name in everyones[0]}
    row = {name: float(np.mean(values)) for name, values in seen.items()}
    row |= {"ratio_min": float(np.min(seen["ratio_min"])), "ratio_max": float(np.max(seen["ratio_max"]))}
    return row | {"ratio_max_deviation": max(row["ratio_max"] - 1, 1 - row["ratio_min"])}


def _require_finite(name: str, value_M: torch.Tensor | None, prompts: list[str], epoch: int, step: int) -> None:
    if value_M is None or value_M.isfinite().all():
        return
    m = int((~value_M.isfinite()).nonzero()[0])
    raise Diverged(
        f"{name} is {value_M[m].item()} (epoch {epoch}, denoising step {step}, prompt {prompts[m]!r}); weights are untouched"
    )
