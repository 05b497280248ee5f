"""Arguments of `star export`; what it does is imported when it is run."""

import argparse
from pathlib import Path

from star.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `star export`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run's folder, whose last adapter is taken")
    which.add_argument(
        "--adapter", type=Path, metavar="DIR", help="adapter/ folder of a checkpoint; outside a run --config has the base"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--base", metavar="ID", help="the base's repository on the hub, where training read it from a folder")


def run(args: argparse.Namespace) -> None:
    """Write the folder and say how to go on."""
    from star.export import folder

    source = folder.of_run(args.run) if args.run else folder.of_adapter(args.adapter)
    card = folder.write(source, args.out, load(args.config, args.set).policy, args.base)
    print(f"{args.out}: adapter, model card, {'settings, ' if source.run else ''}{len(card.shown)} pairs of pictures")
    if card.factor != 1:
        print(f"strength: the header's {card.factor:g} was multiplied into the weights, which now load alike everywhere")
    for line in card.notes:
        print(f"before you publish: {line}")
    print(f"next: hf upload USER/{args.out.name} {args.out}")
