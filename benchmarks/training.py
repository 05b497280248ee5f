"""What training costs, measured in one process: its parts, STAR over scalar, against plain Flow-GRPO, against the matrix rate.

    python -m benchmarks.training                                      # the miniature, on a CPU
    python -m benchmarks.training --size sd35-medium --out gpu         # true size, random weights, CUDA: about ten minutes
    python -m benchmarks.training --size sd35-medium --layers 2 --device cpu --resolution 128 --batch 2 --repeats 1
                                                                       # the same code on a small machine

Epochs of the scalar method, STAR and plain Flow-GRPO (flow_grpo.py) take turns; a pair is two epochs of the same turn.
Source: ours; docs/results/benchmarks.md says what each number means.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from star import config as configuration
from star.cli import quiet_libraries
from star.errors import InputError
from star.prompts import make
from star.runtime import declare_torchvision

TASK = {"miniature": "shapes", "sd35-medium": "pickscore"}
PROMPTS = {"miniature": "shapes", "sd35-medium": "geneval"}
LAYERS = 24


def prepare(args: argparse.Namespace) -> tuple[configuration.Config, int | None]:
    """The size's configuration with the arguments in it, and the images of its own epoch where the benchmark's is smaller.

    Raises InputError on arguments that do not fit, and without the GPU that is asked for.
    """
    true_size, file = args.size == "sd35-medium", f"config/{args.size}.yaml"
    if args.layers is not None and not (true_size and 2 <= args.layers <= LAYERS):
        raise InputError(f"--layers: 2 to {LAYERS}, and only with --size sd35-medium")
    if args.repeats < 1:
        raise InputError("--repeats: at least 1")
    import torch

    device = args.device or ("cuda" if true_size else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        small = "--layers 2 --device cpu --resolution 128 --batch 2"
        raise InputError(f"--device: no CUDA GPU here; {f'try {small}' if true_size else 'give --device cpu'}")
    changes = [f"policy.device={device}", f"scorers.device={device}", "optimizer.learning_rate=1e-6"]
    if args.resolution:
        changes.append(f"policy.resolution={args.resolution}")
    if not true_size:
        return configuration.load(file, [*changes, *([f"rollout.batch={args.batch}"] if args.batch else []), *args.set]), None
    batch, layers = args.batch or 8, args.layers or LAYERS
    changes += ["rollout.groups=2", f"rollout.group_size={batch}", f"rollout.batch={batch}"]
    changes += [f"allocation.blocks=[{min(9, layers - 1)}]"]
    paper = configuration.load(file).rollout
    return configuration.load(file, [*changes, *args.set]), paper.groups * paper.group_size


def _measure(args: argparse.Namespace) -> None:
    config, paper = prepare(args)
    settings = {method: configuration.run_settings(config, TASK[args.size], method) for method in ("flow_grpo", "star")}
    records, star = make.records(config, PROMPTS[args.size], "test"), settings["star"]

    from benchmarks import sd35_medium, suite
    from benchmarks.report import Report
    from benchmarks.work import Work
    from star.models.door import load_model
    from star.models.policy import Policy
    from star.models.sd3 import SD3
    from star.runtime import pick_device, pick_precision
    from star.scoring.pool import RewardPool
    from star.training.train import check

    check(star, records)
    device, scorers = pick_device(star.policy.device), star.scorers
    report = Report(args.out, device)
    with tempfile.TemporaryDirectory() as folder:
        if args.size == "sd35-medium":
            layers = args.layers or LAYERS
            pipe = sd35_medium.pipeline(pick_precision(star.policy), device, layers)
            sd35_medium.save_pickscore(Path(folder), device, layers)
            reward = scorers.pickscore.model_copy(update={"model": folder, "processor": folder})
            scorers = scorers.model_copy(update={"pickscore": reward})
            model = SD3(pipe, star.policy, star.compute)
        else:
            model = load_model(star.policy, star.compute)
        model.watch(star.allocation.blocks, star.allocation.heads)
        policy = Policy(model, star.policy.lora, seed=0)
        with RewardPool(star.reward, scorers, scorers.workers) as pool:
            suite.run(report, Work(settings, policy, pool, records), args.repeats, args.minutes, paper)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=TASK, default="miniature")
    parser.add_argument("--repeats", type=int, default=12, help="turns of all methods (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9, help="start no turn that would end later (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="images at once; at sd35-medium an epoch is two batches (default there: 8)")
    parser.add_argument("--resolution", type=int, help="pixels (default: the configuration's)")
    parser.add_argument("--layers", type=int, help="depth of sd35-medium's networks (default: 24, all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda at sd35-medium, else cpu")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the configuration")
    parser.add_argument("--out", type=Path, metavar="NAME", help="also write NAME.md and NAME.json")
    args = parser.parse_args(argv)
    quiet_libraries()
    declare_torchvision()
    try:
        _measure(args)
    except InputError as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
