"""The training loop: rollout, reward, advantage, allocation, update; metrics.jsonl, checkpoints, resume."""

import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from star.allocation.maps import allocation_map, drift, effective_area, entropy, localisation
from star.config import Allocation, RunSettings
from star.errors import InputError
from star.miniature.regions import region
from star.policy.generator import Generator, weights_digest
from star.policy.seeding import generator
from star.scoring.pool import RewardPool
from star.training import checkpoint
from star.training.advantages import group_advantages
from star.training.rollout import Rollouts, draw_prompts, epoch_schedule, last_trained, sample_epoch, trained_steps
from star.training.update import update_policy


def check(settings: RunSettings, records: list[dict]) -> None:
    """Raise InputError where batch numbers do not divide or prompts are too few, before anything is loaded."""
    rollout = settings.rollout
    images = rollout.groups * rollout.group_size
    if images % rollout.batch:
        raise InputError(f"rollout.batch: {rollout.batch} does not divide groups x group_size = {images}")
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
    """The epoch's allocation maps of the trained steps [B, len(steps), H, W], or None for the scalar objective."""
    if allocation.source == "none":
        return None
    noise = generator("random map", seed, epoch)
    return allocation_map(allocation, rollouts.raw_BTOhw, rollouts.region_Bhw, steps, noise)


def map_diagnostics(map_BTHW: torch.Tensor | None, rollouts: Rollouts, blocks: list[int]) -> dict:
    """What metrics.jsonl says of an epoch's maps; nothing for the scalar objective.

    Where the true objects are known: the localisation gain of the weights, and of the raw attention by block and step.
    """
    if map_BTHW is None:
        return {}
    found = {"map_entropy": entropy(map_BTHW), "map_effective_area": effective_area(map_BTHW), "map_drift": drift(map_BTHW)}
    if rollouts.region_Bhw is not None:
        token_BThw = map_BTHW[..., ::2, ::2]
        gains = {"map_localisation": localisation(token_BThw, rollouts.region_Bhw).mean().item()}
        for o, block in enumerate(blocks):
            for t, gain in enumerate(localisation(rollouts.raw_BTOhw[:, :, o], rollouts.region_Bhw).tolist()):
                gains[f"localisation_block{block}_step{t}"] = gain
        found |= {name: gain if math.isfinite(gain) else None for name, gain in gains.items()}  # no objects in any picture
    return found


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process on its device, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _keep_rows(file: Path, epochs: int) -> None:
    """Cut metrics of epochs that a resumed run does again."""
    rows = file.read_text().splitlines()[:epochs] if file.exists() else []
    file.write_text("".join(row + "\n" for row in rows))


def train(settings: RunSettings, seed: int, records: list[dict], out: Path, start_over: bool = False) -> None:
    """Train one method on one task into `out`, resuming from its newest checkpoint.

    Checkpoints of other settings or weights raise InputError, or are removed to `start_over`. Raises InputError on settings
    that do not fit, before any work; RuntimeError when rollout and update disagree.
    """
    check(settings, records)
    digest = f"{settings.digest()}-{weights_digest(settings.policy)}"
    found = checkpoint.newest(out / "checkpoints", digest, settings.training.epochs, start_over)
    rollout, training, allocation = settings.rollout, settings.training, settings.allocation
    record_maps = allocation.source != "none"
    policy = Generator(settings.policy, allocation if record_maps else None)
    parameters = policy.add_adapter(seed)
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay
    )
    ema = checkpoint.Ema(parameters, training.ema_decay, training.ema_every)
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(settings.model_dump_json(indent=1))
    done = checkpoint.resume(found, policy, ema, optimizer)
    metrics = out / "metrics.jsonl"
    _keep_rows(metrics, done)

    empty = policy.empty_prompt()
    true_region = region if settings.prompts.world == "miniature" else None
    bar = tqdm(
        range(done + 1, training.epochs + 1),
        initial=done,
        total=training.epochs,
        desc=f"{settings.task} {settings.method} seed{seed}",
        unit="epoch",
        mininterval=0.1 if sys.stderr.isatty() else 20,
    )
    with RewardPool(settings.reward, settings.scorers, settings.scorers.workers) as pool:
        for epoch in bar:
            ids = draw_prompts(rollout.groups, len(records), seed, epoch)
            chosen = [records[i] for i in ids]
            prompts = policy.encode(chosen)
            steps = trained_steps(rollout, seed, epoch)
            schedule = epoch_schedule(policy, rollout, steps)
            rollouts = sample_epoch(
                policy, rollout, schedule, chosen, ids, prompts, empty, pool, seed, epoch, record_maps, true_region
            )
            began = time.perf_counter()
            advantage_B = group_advantages(rollouts.reward_B, rollouts.prompt_B, training.advantage_clip)
            map_BTHW = make_maps(allocation, rollouts, steps, seed, epoch)
            mapped = time.perf_counter()
            row = update_policy(
                policy,
                training,
                allocation.objective,
                schedule,
                steps,
                rollouts,
                map_BTHW,
                advantage_B,
                prompts,
                empty,
                optimizer,
                ema.after_step,
                batch=rollout.batch,
                seed=seed,
                epoch=epoch,
                expect_ratio_one=epoch == done + 1,
            )
            reward_B = rollouts.reward_B
            row = {
                "epoch": epoch,
                **row,
                "reward_mean": reward_B.mean(),
                "reward_std": reward_B.std(),
                "zero_advantage_share": float((advantage_B == 0).mean()),
                "images": len(reward_B),
                **map_diagnostics(map_BTHW, rollouts, allocation.blocks),
                "seconds_rollout": rollouts.seconds_rollout,
                "seconds_reward": rollouts.seconds_reward,
                "seconds_maps": mapped - began,
                "seconds_update": time.perf_counter() - mapped,
                "peak_memory_bytes": peak_memory(policy.device),
            }
            with metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(reward=f"{row['reward_mean']:.3f}", refresh=False)
            if epoch % training.checkpoint_every == 0 or epoch == training.epochs:
                checkpoint.save(out / "checkpoints" / f"step{epoch}", policy, ema, optimizer, epoch, digest)
