"""What STAR costs over the scalar objective: same work, one process, epochs of both methods in turn.

    python benchmarks/overhead.py [--config config/miniature.yaml] [--repeats 12]

Prints seconds an epoch of each part, the ratio of whole epochs with a 95 % interval (paired epochs, bootstrap), and the ratio
of peak memory (each method alone in a fresh process, or CUDA's own counter). Reward: geneval. Source: ours.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
import torch
from scipy.stats import bootstrap

from star import config as configuration
from star import prompts
from star.cli import _quiet_libraries
from star.miniature.regions import region
from star.policy.generator import Generator
from star.scoring.pool import RewardPool
from star.training.rollout import draw_prompts, epoch_schedule, sample_epoch, trained_steps
from star.training.trainer import make_maps, map_diagnostics, peak_memory
from star.training.update import update_policy

METHODS = ("flow_grpo", "star")


class Run:
    """One method's policy and optimizer; `epoch` does what an epoch of `star train` does, timed."""

    def __init__(self, config: configuration.Config, method: str) -> None:
        self.settings = configuration.run_settings(config, "geneval", method)
        self.records = prompts.records(config, "geneval", "train")
        self.maps = self.settings.allocation.source != "none"
        self.policy = Generator(self.settings.policy, self.settings.allocation if self.maps else None)
        self.optimizer = torch.optim.AdamW(
            self.policy.add_adapter(0), lr=1e-5
        )  # so small that both methods keep doing the same work
        self.empty = self.policy.empty_prompt()

    def epoch(self, epoch: int, pool: RewardPool) -> dict[str, float]:
        settings, rollout, policy = self.settings, self.settings.rollout, self.policy
        ids = draw_prompts(rollout.groups, len(self.records), 0, epoch)
        chosen = [self.records[i] for i in ids]
        began = time.perf_counter()
        encoded, steps = policy.encode(chosen), trained_steps(rollout, 0, epoch)
        schedule = epoch_schedule(policy, rollout, steps)
        rollouts = sample_epoch(policy, rollout, schedule, chosen, ids, encoded, self.empty, pool, 0, epoch, self.maps, region)
        sampled = time.perf_counter()
        advantage_B = np.random.default_rng(epoch).normal(size=len(rollouts.reward_B))  # no rollout dropped: equal work
        map_BTHW = make_maps(settings.allocation, rollouts, steps, 0, epoch)
        map_diagnostics(map_BTHW, rollouts, settings.allocation.blocks)
        mapped = time.perf_counter()
        update_policy(
            policy,
            settings.training,
            settings.allocation.objective,
            schedule,
            steps,
            rollouts,
            map_BTHW,
            advantage_B,
            encoded,
            self.empty,
            self.optimizer,
            lambda: None,
            batch=rollout.batch,
            seed=0,
            epoch=epoch,
            expect_ratio_one=False,
        )
        done = time.perf_counter()
        return {"rollout": sampled - began, "maps": mapped - sampled, "update": done - mapped, "epoch": done - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/miniature.yaml")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    _quiet_libraries()
    config = configuration.load(args.config)
    with RewardPool({"geneval": 1.0}, config.scorers, 0) as pool:
        if args.memory_of:
            run = Run(config, args.memory_of)
            for epoch in (1, 2):
                run.epoch(epoch, pool)
            print(peak_memory(run.policy.device))
            return
        runs = {method: Run(config, method) for method in METHODS}
        for run in runs.values():  # warm up
            run.epoch(1, pool)
        seconds = {method: [] for method in METHODS}
        for repeat in range(args.repeats):
            for method in METHODS if repeat % 2 else METHODS[::-1]:
                seconds[method].append(runs[method].epoch(repeat + 2, pool))
    for method in METHODS:
        parts = {k: np.median([row[k] for row in seconds[method]]) for k in seconds[method][0]}
        print(f"{method:<10}" + "  ".join(f"{k} {v:.3f} s" for k, v in parts.items()))
    scalar, star = (np.array([row["epoch"] for row in seconds[method]]) for method in METHODS)
    found = bootstrap((star / scalar,), np.median, random_state=0)
    low, high = found.confidence_interval
    print(f"time   star / flow_grpo {np.median(star / scalar):.3f} [{low:.3f}, {high:.3f}], {args.repeats} pairs of epochs")
    command = [sys.executable, __file__, "--config", args.config, "--memory-of"]
    memory = [
        [int(subprocess.run([*command, m], check=True, capture_output=True, text=True).stdout) for m in METHODS]
        for _ in range(3)
    ]
    flow, ours = np.median(memory, 0)
    print(
        f"memory star / flow_grpo {ours / flow:.3f}, median of 3 processes each ({flow / 2**20:.0f} and {ours / 2**20:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
