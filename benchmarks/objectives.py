"""What an epoch of every objective costs, with and without maps: passes, counted operations, processor seconds.

    python -m benchmarks.objectives --config config/experiments/objectives-miniature.yaml --out docs/benchmarks/objectives

A turn is one epoch of every method of the experiment, in rotating order, on one policy each. Rewards are drawn, so all rollouts
have an advantage, and no scoring is in the seconds. Seconds are the process's own (`time.process_time`), which other work on
the machine disturbs less than the clock; on a GPU they mean little. A map's own functions are what is called only where there
is a map: recording attention, and making the weights.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import numpy as np

from benchmarks.measure import count, paired_ratio
from benchmarks.report import Report
from star import config as configuration
from star.cli import quiet_libraries
from star.config import Config
from star.errors import InputError
from star.models.attention import Recorder
from star.objectives.door import make_objective
from star.prompts import make
from star.prompts.record import Prompt
from star.runtime import declare_torchvision, pick_device
from star.training import epoch as epochs
from star.training import maps
from star.training.epoch import Session, run_epoch
from star.training.learner import Learner
from star.training.plan import passes
from star.training.processes import Processes
from star.training.train import check, make_policy

MAPS = ((Recorder, "record"), (maps.PointMaps, "at"), (epochs, "make_maps"))  # called only where there is a map


class DrawnRewards:
    """Rewards that no picture decides, so that every rollout has an advantage."""

    def __init__(self, scorer: str) -> None:
        self.scorer, self.rng = scorer, np.random.default_rng(0)

    def submit(self, pictures: list[np.ndarray], prompts: list[Prompt]) -> Future:
        """A drawn reward a picture."""
        reward, scored = self.rng.random(len(pictures)), Future()
        scored.set_result((reward, {self.scorer: reward}))
        return scored


@contextmanager
def timed(places: tuple = MAPS) -> Iterator[list[float]]:
    """Processor seconds of every call of some functions inside, each an owner and a name."""
    seconds: list[float] = []

    def watched(function: Callable) -> Callable:
        @wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds.append(time.process_time() - began)

        return call

    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, watched(function))
    try:
        yield seconds
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def session(config: Config, task: str, method: str) -> Session:
    """A training of a method whose rewards are drawn, without true objects, which only diagnostics ask for."""
    settings = configuration.run_settings(config, task, method)
    records = make.records(config, task, "train")
    check(settings, records)
    objective = make_objective(settings)
    learner = Learner(make_policy(settings, 0), settings.optimizer, settings.training, keeps_old="old" in objective.asks)
    return Session(
        settings,
        0,
        records,
        learner,
        objective,
        DrawnRewards(next(iter(settings.reward))),
        Processes(),
        lambda pictures, prompts: None,
    )


def measure(config: Config, task: str, methods: list[str], repeats: int, report: Report) -> None:
    """Measure and report all methods; a method `x_map` is held against its scalar form `x` where both are there."""
    sessions = {method: session(config, task, method) for method in methods}
    operations, whole, own = {}, defaultdict(list), defaultdict(list)
    for method, made in sessions.items():
        cost = passes(made.settings, made.learner.policy.model.passes)
        report.add(f"{method}: passes an image", sum(cost), "", note=f"rollout {cost[0]}, update {cost[1]}, backward {cost[2]}")
        operations[method] = count(lambda made=made: run_epoch(made, 1, first=True))
        images = made.settings.rollout.groups * made.settings.rollout.group_size
        report.add(f"{method}: operations an image", operations[method] / images / 1e9, "GFLOP", note="counted over an epoch")
    for turn in range(repeats):
        for i in range(len(methods)):
            method = methods[(i + turn) % len(methods)]
            with timed() as seconds:
                began = time.process_time()
                run_epoch(sessions[method], turn + 2, first=False)
                whole[method].append(time.process_time() - began)
            own[method].append(sum(seconds))
        report.say(f"turn {turn + 1} of {repeats}")
    for method in methods:
        report.add(f"{method}: epoch", float(np.median(whole[method])), "processor s", n=repeats)
        scalar = method.removesuffix("_map")
        if scalar == method or scalar not in sessions:
            continue
        more = 100 * (operations[method] / operations[scalar] - 1)
        report.add(f"{method}: operations over {scalar}", more, "% more", note="products alone, as counted")
        share = [100 * part / total for part, total in zip(own[method], whole[method], strict=True)]
        report.add(f"{method}: the map's own functions", float(np.median(share)), "% of an epoch", n=repeats)
        ratio, low, high = (100 * (value - 1) for value in paired_ratio(whole[method], whole[scalar]))
        report.add(f"{method}: epoch over {scalar}", ratio, "% more", (low, high), n=repeats, note="epochs of a turn paired")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="an experiment whose methods are objectives")
    parser.add_argument("--task", help="default: its first")
    parser.add_argument("--methods", nargs="+", help="default: all but those ending in _random")
    parser.add_argument("--repeats", type=int, default=6, help="turns of all methods (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="NAME", help="also write NAME.md and NAME.json")
    args = parser.parse_args(argv)
    quiet_libraries()
    declare_torchvision()
    try:
        config = configuration.load(args.config)
        task = args.task or next(iter(config.tasks))
        methods = args.methods or [name for name in config.methods if not name.endswith("_random")]
        chosen = configuration.run_settings(config, task, methods[0])
        report = Report(args.out, pick_device(chosen.policy.device), module="objectives")
        measure(config, task, methods, args.repeats, report)
    except InputError as error:
        print(f"benchmarks.objectives: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
