"""The training loop: rollout, reward, advantage, allocation, update; metrics.jsonl, checkpoints, resume.

Shapes: B rollouts of the epoch, R rollouts held by this process, T steps, O recorded blocks, H W latents, h w token grid.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from star import code
from star.allocation.maps import allocation_map, drift, effective_area, entropy, localisation
from star.config import Allocation, RunSettings, published_epochs
from star.errors import Diverged, InputError, Preempted
from star.files import write_json, write_text
from star.flow.seeding import generator
from star.layout import Run
from star.models.sd3 import Encoded, Generator
from star.objectives.advantages import group_advantages
from star.prompts.record import Prompt
from star.runtime import environment
from star.scoring.pool import RewardPool
from star.training import checkpoint
from star.training.learner import Learner
from star.training.plan import describe, describe_device, describe_memory
from star.training.processes import Processes
from star.training.rollout import Rollouts, draw_prompts, epoch_schedule, last_trained, sample_epoch, trained_steps
from star.training.update import update_policy
from star.worlds.miniature.regions import region


def check(settings: RunSettings, records: list[Prompt], processes: int = 1) -> None:
    """Raise InputError where batch numbers do not divide or prompts are too few, before anything is loaded."""
    rollout = settings.rollout
    images = rollout.groups * rollout.group_size
    if images % rollout.batch:
        raise InputError(f"rollout.batch: {rollout.batch} does not divide groups x group_size = {images}")
    if images // rollout.batch % processes:
        raise InputError(
            f"rollout.batch: {images} images in batches of {rollout.batch} are {images // rollout.batch}, which {processes} "
            "processes cannot share evenly"
        )
    if len(records) < rollout.groups:
        raise InputError(f"rollout.groups: {rollout.groups} groups need as many prompts, the file has {len(records)}")
    first, last = rollout.window_range or (0, rollout.steps)
    if rollout.window and not 0 <= first <= last - rollout.window <= rollout.steps - rollout.window:
        raise InputError(f"rollout.window: {rollout.window} steps do not fit into steps {first} to {last} of {rollout.steps}")
    if settings.allocation.source != "none" and not settings.allocation.blocks:
        raise InputError("allocation.blocks: name the transformer blocks whose attention makes the maps")
    if settings.allocation.source == "oracle" and settings.prompts.world != "miniature":
        raise InputError("allocation.source: oracle needs a world that knows the true objects; only `miniature` does")
    if rollout.sampler == "cps" and last_trained(rollout) >= rollout.steps:
        raise InputError("rollout.sampler: cps adds no noise in the last step; train fewer (trained_fraction, window_range)")


def make_maps(allocation: Allocation, rollouts: Rollouts, steps: range, seed: int, epoch: int) -> torch.Tensor | None:
    """The allocation maps of the held rollouts and trained steps [R, len(steps), H, W], or None for the scalar objective."""
    if allocation.source == "none":
        return None
    noise = None
    if allocation.control in ("random", "shuffled"):
        shape = (len(rollouts.prompt_B), len(steps), *rollouts.raw_RTOhw.shape[-2:])
        noise = torch.randn(shape, generator=generator("random map", seed, epoch))[rollouts.row_R]
    return allocation_map(allocation, rollouts.raw_RTOhw, rollouts.region_Rhw, steps, noise)


def map_diagnostics(map_RTHW: torch.Tensor | None, rollouts: Rollouts, blocks: list[int], processes: Processes) -> dict:
    """What metrics.jsonl says of an epoch's maps, means over its rollouts; nothing for the scalar objective.

    Where the true objects are known: the localisation gain of the weights, and of the raw attention by block and step.
    """
    if map_RTHW is None:
        return {}
    found = {"map_entropy": entropy(map_RTHW), "map_effective_area": effective_area(map_RTHW), "map_drift": drift(map_RTHW)}
    if rollouts.region_Rhw is not None:
        area_R, weights_RThw = rollouts.region_Rhw.mean((1, 2)), map_RTHW[..., ::2, ::2]
        area_R = area_R.where(area_R > 0, torch.nan)  # pictures without objects count nowhere
        found["object_area"] = area_R
        found["map_localisation"] = localisation(weights_RThw, rollouts.region_Rhw).mean(1)
        found["gradient_inside"] = localisation(weights_RThw**2, rollouts.region_Rhw).mean(1) * area_R
        for o, block in enumerate(blocks):
            gain_RT = localisation(rollouts.raw_RTOhw[:, :, o], rollouts.region_Rhw)
            found |= {f"localisation_block{block}_step{t}": gain_R for t, gain_R in enumerate(gain_RT.unbind(1))}
    all_BN = processes.in_order(torch.stack(list(found.values()), 1), rollouts.row_R)
    means = (x.item() for x in all_BN.nanmean(0))  # nan: no objects in the picture, or one step only
    return {name: None if np.isnan(mean) else mean for name, mean in zip(found, means, strict=True)}


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process on its device, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _keep_rows(file: Path, epochs: int) -> None:
    """Cut metrics of epochs that a resumed run does again."""
    rows = file.read_text().splitlines()[:epochs] if file.exists() else []
    write_text(file, "".join(row + "\n" for row in rows))


def plan(settings: RunSettings, seed: int, records: list[Prompt]) -> None:
    """Print what `train` would do and need with compute.processes, and do nothing. Raises InputError as `train` does."""
    processes = settings.compute.processes
    check(settings, records, processes)
    policy = Generator(settings.policy, settings.allocation, settings.compute)
    policy.add_adapter(seed)
    print(
        *describe(settings, processes),
        describe_device(policy),
        *describe_memory(policy, settings.rollout.batch, processes),
        sep="\n",
    )


def train(settings: RunSettings, seed: int, records: list[Prompt], out: Path, start_over: bool = False) -> None:
    """Train one method on one task into `out`, resuming from its newest checkpoint; in as many processes as were launched.

    Checkpoints of other settings or weights raise InputError, or are set aside to `start_over`. Raises InputError on settings
    that do not fit and on prompts that cannot be scored, before any work; RuntimeError when rollout and update disagree;
    ScorerFailed, Diverged on numbers that are not finite; Preempted, when asked to stop, after writing a checkpoint of the last
    whole epoch.
    """
    processes = Processes()
    check(settings, records, processes.count)
    key = checkpoint.key_of(settings)
    training, run = settings.training, Run(out)
    checkpoints, metrics = run.checkpoints, run.metrics
    found = processes.from_first(lambda: checkpoint.newest(run, key, training.epochs, start_over))
    allocation = settings.allocation if settings.allocation.source != "none" else None
    policy = Generator(settings.policy, allocation, settings.compute)
    learner = Learner(policy, settings.optimizer, training, seed)
    done = checkpoint.resume(found, learner)
    if processes.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_text(run.settings, settings.model_dump_json(indent=1))
        write_json(run.environment, environment(policy.device) | {"precision": str(policy.dtype)})
        code.record(out, "star.training.train", fresh=done == 0)
        _keep_rows(metrics, done)
        lines = [*describe(settings, processes.count), describe_device(policy)]
        if policy.device.type == "cuda":
            lines += describe_memory(policy, settings.rollout.batch, processes.count)
        print(*lines, sep="\n", file=sys.stderr, flush=True)

    policy.shard(processes.count)
    empty = policy.empty_prompt()
    published, kept_states = published_epochs(settings), settings.checkpoints.keep_states
    save_every = settings.checkpoints.save_every
    bar = tqdm(
        range(done + 1, training.epochs + 1),
        initial=done,
        total=training.epochs,
        desc=f"{settings.task} {settings.method} seed{seed}",
        unit="epoch",
        mininterval=0.1 if sys.stderr.isatty() else 20,
        disable=processes.rank > 0,
    )
    with processes.watching(), RewardPool(settings.reward, settings.scorers, settings.scorers.workers) as pool, bar:
        pool.check(records)
        for epoch in bar:
            before = learner.capture() if processes.rank == 0 else None
            try:
                row = train_epoch(settings, learner, records, empty, pool, processes, seed, epoch, first=epoch == done + 1)
            except Preempted as stop:
                kept = run.checkpoint(epoch - 1)
                if processes.rank == 0 and epoch > 1 and not kept.exists():
                    checkpoint.save(kept, learner, before, epoch - 1, key)
                processes.gather(None)  # a launcher kills all when one leaves
                raise Preempted(f"{stop} in epoch {epoch}; the same command goes on from epoch {epoch - 1}") from None
            if processes.rank > 0:
                continue
            with metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(reward=f"{row['reward_mean']:.3f}", refresh=False)
            if training.max_kl is not None and row["kl"] > training.max_kl:
                raise Diverged(f"KL to the base is {row['kl']:.3g}, above training.max_kl = {training.max_kl} (epoch {epoch})")
            if epoch in published or (save_every and epoch % save_every == 0):
                checkpoint.save(run.checkpoint(epoch), learner, learner.capture(), epoch, key)
                checkpoint.prune(checkpoints, kept_states, published)
    processes.close()


def train_epoch(
    settings: RunSettings,
    learner: Learner,
    records: list[Prompt],
    empty: Encoded | None,
    pool: RewardPool,
    processes: Processes,
    seed: int,
    epoch: int,
    first: bool,
) -> dict:
    """One epoch, the `first` since the run was started or not; returns its line of metrics.jsonl."""
    rollout, allocation, policy = settings.rollout, settings.allocation, learner.policy
    record_maps = allocation.source != "none"
    processes.stop_if_asked()
    ids = draw_prompts(rollout.groups, len(records), seed, epoch)
    chosen = [records[i] for i in ids]
    prompts = policy.encode(chosen)
    steps = trained_steps(rollout, seed, epoch)
    schedule = epoch_schedule(policy, rollout, steps)
    true_region = region if settings.prompts.world == "miniature" else None
    rollouts = sample_epoch(
        policy, rollout, schedule, chosen, ids, prompts, empty, pool, processes, seed, epoch, record_maps, true_region
    )
    began = time.perf_counter()
    advantage_B = group_advantages(rollouts.reward_B, rollouts.prompt_B, settings.objective.advantage_clip)
    map_RTHW = make_maps(allocation, rollouts, steps, seed, epoch)
    mapped = time.perf_counter()
    row = update_policy(
        learner,
        settings.objective,
        schedule,
        steps,
        rollouts,
        map_RTHW,
        advantage_B,
        chosen,
        prompts,
        empty,
        processes,
        batch=rollout.batch,
        updates_per_epoch=settings.training.updates_per_epoch,
        seed=seed,
        epoch=epoch,
        expect_ratio_one=first,
    )
    updated = time.perf_counter()
    reward_B = rollouts.reward_B
    return {
        "epoch": epoch,
        **row,
        "reward_mean": reward_B.mean(),
        "reward_std": reward_B.std(),
        **{f"reward_{scorer}": each_B.mean() for scorer, each_B in rollouts.scorer_B.items()},
        "zero_advantage_share": float((advantage_B == 0).mean()),
        "images": len(reward_B),
        **map_diagnostics(map_RTHW, rollouts, allocation.blocks, processes),
        "seconds_rollout": rollouts.seconds_rollout,
        "seconds_reward": rollouts.seconds_reward,
        "seconds_maps": mapped - began,
        "seconds_update": updated - mapped,
        "peak_memory_bytes": max(processes.gather(peak_memory(policy.device))),
    }
