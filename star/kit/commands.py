"""Arguments of `star kit`; what it does is imported when it is run."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `star kit`."""
    parser.add_argument("--task", required=True, help="a key of `tasks:`, whose prompts and reward are tried")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it works; the file to send is DIR.zip")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Try everything and write the file; returns 0 when all of it was fine, else 1."""
    from star.kit.trial import try_all

    return try_all(args.config, args.set, args.task, out=args.out, seed=args.seed)
