"""`star credit`; what it does is imported when it is run."""

import argparse
import sys
from functools import partial
from pathlib import Path

from star import config as configuration
from star import layout
from star.errors import InputError
from star.prompts import make
from star.prompts.record import read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `star credit`."""
    parser.add_argument("--task", required=True, help="a key of `tasks:`")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter/ folder of a checkpoint (default: a fresh one)")
    parser.add_argument("--batches", type=int, default=64, metavar="K", help="batches, at least 4 (default: %(default)s)")
    parser.add_argument(
        "--allocations",
        nargs="+",
        metavar="NAME",
        help="methods, names of the standard list, or NAME={key: value} (default: methods and the standard list)",
    )
    parser.add_argument(
        "--octiles", metavar="NAME", help="the allocation whose map parts the places into eighths; it costs eight more maps"
    )
    parser.add_argument(
        "--until", type=float, metavar="WIDTH", help="stop when the efficiency of no method has a wider interval than this"
    )
    parser.add_argument(
        "--towards",
        choices=("equal", "equal_noise"),
        default="equal",
        help="steps of the direction that signals are taken towards; equal_noise takes fewer batches (docs/credit.md)",
    )
    parser.add_argument("--dimensions", type=int, default=16384, metavar="D", help="of the projection (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=Path, help="prompt records (default: the task's training set)")
    parser.add_argument("--start-over", action="store_true", help="set a measurement of other settings aside")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: credit/<task> in the experiment's folder")


def run(args: argparse.Namespace) -> None:
    """Measure the batches that are missing, write tables and figure, and print the verdict."""
    if args.batches < 4:
        raise InputError(f"--batches {args.batches}: an interval needs at least 4")
    if args.dimensions < 1:
        raise InputError(f"--dimensions {args.dimensions}: at least 1")
    config = configuration.load(args.config, args.set)
    configuration.require_task(config, args.task)
    from star.credit import allocations, estimates, measure, report
    from star.models.load import block_count

    settings = allocations.base_settings(config, args.task)
    methods, apart = allocations.of_methods(config, args.task)
    known = methods | allocations.standard(settings, block_count(settings.policy))
    if args.allocations is None:
        chosen = allocations.without_twins(known)
    else:
        chosen = allocations.chosen(known, args.allocations, settings.allocation)
    if args.octiles is not None and args.octiles not in chosen:
        raise InputError(f"--octiles {args.octiles}: not among the allocations; there are {', '.join(chosen)}")
    if apart:
        said = "differ from the other methods in rollout or objective and cannot share their rollouts; left out"
        print(f"{', '.join(apart)}: {said}", file=sys.stderr)
    out = args.out or layout.credit(config, args.task)
    measurement = measure.Measurement(settings, chosen, args.octiles, args.adapter, args.dimensions, args.seed)
    watched = [name for name in methods if name in chosen] or list(chosen)
    if args.start_over:
        measure.set_aside(measurement, out)
    prompts = read(args.prompts) if args.prompts else make.records(config, args.task, "train")
    enough = partial(estimates.enough, watched=watched, width=args.until, dimensions=args.dimensions)
    batches = measure.measure(measurement, prompts, out, batches=args.batches, enough=enough)
    print(
        report.write(out, measurement.rows, batches, args.towards),
        f"{out}: credit.csv, steps.csv, credit.md, credit.svg",
        sep="\n",
    )
