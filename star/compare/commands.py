"""Arguments of `star compare` and `star votes`; what they do is imported when they are run."""

import argparse
from pathlib import Path

QUESTION = "Which picture shows the text better?"


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `star compare`."""
    folder = "a folder of pictures, in GenEval's layout or flat (with --prompts), or a run, whose last pictures are taken"
    parser.add_argument("--a", type=Path, required=True, metavar="DIR", help=folder)
    parser.add_argument("--b", type=Path, required=True, metavar="DIR", help="the other pictures of the same prompts")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the page goes")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts of both folders: .txt, or JSON lines")
    parser.add_argument("--seed", type=int, default=0, help="of sides, order and choice (default: %(default)s)")
    parser.add_argument("--count", type=int, metavar="N", help="pairs to judge, of as many prompts as can be (default: all)")
    parser.add_argument("--question", default=QUESTION, metavar="TEXT", help="what people are asked (default: %(default)s)")


def compare(args: argparse.Namespace) -> None:
    """Write the page and say how to go on."""
    from star.compare import page

    choice = {"prompts": args.prompts, "seed": args.seed, "count": args.count}
    study = page.write((args.a, args.b), args.out, question=args.question, **choice)
    hand_on = f"the whole folder {args.out}" if study.beside else "this one file"
    print(f"{args.out / 'index.html'}: {study.pairs} pairs of {study.prompts} prompts, comparison {study.id}")
    print(f"Give people {hand_on}; sum up the files they send back with `star votes FILES`")


def add_votes_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `star votes`."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="saved votes, one file a person")
    parser.add_argument("--scores", type=Path, nargs=2, metavar=("A", "B"), help="scores of both sides, from `star score`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write votes.md, votes.csv and people.csv")


def votes(args: argparse.Namespace) -> None:
    """Print what the votes say, and write it."""
    from star.compare import votes

    print(votes.report(args.files, args.scores, args.out), end="")
