"""The command line: `star STAGE`, the same words as rules and folders.

Exit codes: 0 done, 1 failed, 2 bad input, 75 a training asked to stop (SIGTERM, Ctrl-C) after writing a checkpoint, 130 any
other stage stopped by Ctrl-C.
"""

import argparse
import functools
import io
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import yaml

from star import config as configuration
from star.compare import commands as compare
from star.config import document, migrate
from star.credit import commands as credit
from star.errors import Diverged, InputError, Preempted, ScorerFailed, Stalled
from star.export import commands as export
from star.files import UNWRITABLE, require_writable, write_text
from star.kit import commands as kit
from star.prompts import make
from star.prompts.record import read
from star.runtime import declare_torchvision

_WRITE_A_FILE = ("prompts", "score", "config")  # the others write a folder


Stages = argparse._SubParsersAction  # argparse has no public name for what `add_subparsers` returns


def quiet_libraries() -> None:
    """Progress bars and notices of libraries would drown ours; kernels run single-minded, logs stay readable."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="PIL")  # a picture is scored, or refused in one line
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    logging.getLogger("RapidOCR").setLevel(logging.WARNING)


def _print_anything() -> None:
    """Prompts hold letters that a terminal's encoding may lack; they are escaped instead of stopping the stage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prompts(args: argparse.Namespace) -> None:
    if args.show_core:
        from star.prompts.show import show

        show(configuration.load(args.config, args.set).policy, args.show_core)
        return
    for option in ("task", "split", "out"):
        if getattr(args, option) is None:
            raise InputError(f"--{option}: say which, or use --show-core FILE")
    n = make.write(configuration.load(args.config, args.set), args.task, args.split, args.out)
    print(f"{n} prompts in {args.out}")


def _train(args: argparse.Namespace) -> None:
    config = configuration.load(args.config, args.set)
    if args.method == "base":
        raise InputError("--method base: the untrained model has nothing to train")
    settings = configuration.run_settings(config, args.task, args.method)
    from star.training.train import Watched, plan, train

    records = read(args.prompts) if args.prompts else make.records(config, args.task, "train")
    if args.plan:
        plan(settings, args.seed, records)
        return
    if args.out is None:
        raise InputError("--out: say where checkpoints and metrics go, or use --plan")
    from star.tracking.live import Live

    fixed = make.fixed(config, args.task, config.tracking.prompts) if config.tracking.prompts else []
    live = Live(config, args.task, args.method, args.seed, args.out)
    train(settings, args.seed, records, args.out, args.start_over, Watched(fixed, live))


def _sample(args: argparse.Namespace) -> None:
    config = configuration.load(args.config, args.set)
    from star.sampling.sample import sample_checkpoints

    if args.images is not None:
        evaluation = config.evaluation.model_copy(update={"images_per_prompt": args.images})
        config = config.model_copy(update={"evaluation": evaluation})
    adapters = args.adapter or [None]
    if len(adapters) != len(args.out):
        raise InputError(f"--out: {len(args.out)} folders for {len(adapters)} adapters; give a folder for each, in their order")
    if len(set(args.out)) < len(args.out):
        raise InputError("--out: a folder is named twice")
    checkpoints = dict(zip(args.out, adapters, strict=True))
    n = sample_checkpoints(config, args.prompts, checkpoints, seed=args.seed, start_over=args.start_over)
    print(f"{n} images sampled into {', '.join(map(str, args.out))}")


def _score(args: argparse.Namespace) -> None:
    if args.detections and (args.scorer != "geneval" or args.images or args.prompts or args.guards):
        raise InputError(
            "--detections: stored detections are judged for `--scorer geneval`, and without --images, --prompts, --guards"
        )
    if not args.detections and not args.images:
        raise InputError("--images: say which folder of pictures to score, or give --detections FILE")
    if len(args.out) > 1 and (args.detections or args.all):
        raise InputError("--out: one place, with --detections and --all")
    from star.scoring import folder
    from star.scoring.summary import print_summary

    if args.detections:
        from star.scoring.stored import rescore

        print_summary(rescore(args.detections, args.out[0]))
        return
    config = configuration.load(args.config, args.set)
    scorers = config.scorers
    if args.all and args.guards:
        raise InputError("--guards: needs --scorer, whose pictures these are; --all already has the other scorers' scores")
    if args.all:
        if len(args.images) > 1:
            raise InputError("--images: one folder, with --all")
        for name, summary in folder.score_all(args.images[0], args.out[0], scorers, args.prompts).items():
            if summary is None:
                print(f"{name}: not scored, no prompt has what it needs")
            else:
                print_summary(summary)
        return
    if args.task:
        configuration.require_task(config, args.task)
    scorer = configuration.main_scorer(config, args.task) if args.task else args.scorer
    if ":" not in scorer and scorer not in configuration.SCORERS:
        raise InputError(f"--scorer {scorer}: no such scorer; there are {', '.join(configuration.SCORERS)}, module:function")
    guards = args.guards or [None] * len(args.images)
    for option, places in (("--out", args.out), ("--guards", guards)):
        if len(places) != len(args.images):
            raise InputError(f"{option}: {len(places)} files for {len(args.images)} folders; give one for each, in their order")
    wanted = [folder.Wanted(*places) for places in zip(args.images, args.out, guards, strict=True)]
    for summary in folder.score_folders(scorer, wanted, scorers, args.prompts):
        print_summary(summary)


def _tables(args: argparse.Namespace) -> None:
    from star.analysis import write as tables

    tables.write(configuration.load(args.config, args.set), args.out)


def _report(args: argparse.Namespace) -> None:
    from star.report import page

    page.write(configuration.load(args.config, args.set), args.out)


def _evidence(args: argparse.Namespace) -> None:
    if not (args.collect or args.out or args.check):
        raise InputError("--collect, --out, --check: give one or more, else there is nothing to do")
    if (args.collect or args.out) and args.data is None:
        raise InputError("--data: say which folder has the collected runs")
    if args.collect or args.out:
        from star.evidence import page

        config = configuration.load(args.config, args.set)
        if args.collect:
            page.collect(config, args.data)
        if args.out:
            page.write(config, args.data, args.out)
    if args.check:
        from star.evidence import quotes

        print(f"{args.check}: {quotes.check(args.check)} quoted numbers are those of the tables")


def _maps(args: argparse.Namespace) -> None:
    config = configuration.load(args.config, args.set)
    from star.sampling import gallery

    settings = configuration.run_settings(config, args.task, args.method)
    if args.localisation:
        table = gallery.measure(settings, args.prompts, args.out, args.adapter, args.seed)
        print(table.pivot(index="block", columns="step", values="gain").round(2).to_string())
    elif args.by_prompt:
        table = gallery.measure_prompts(settings, args.prompts, args.out, args.adapter, args.seed)
        print(table.groupby("tag", sort=False)[["entropy", "effective_area", "gain"]].mean().round(3).to_string())
    else:
        gallery.draw(settings, args.prompts, args.out, args.adapter, args.count, args.seed)


def _log(args: argparse.Namespace) -> None:
    from star.tracking.mirror import mirror, mirror_credit, mirror_tables

    config = configuration.load(args.config, args.set)
    if args.credit:
        configuration.require_task(config, args.task)
        mirror_credit(config, args.task, args.credit)
    elif args.tables:
        mirror_tables(config)
    else:
        mirror(config, args.task, args.method, args.seed, args.run)


def _ui(args: argparse.Namespace) -> int:
    from star.tracking.ui import serve

    return serve(configuration.load(args.config, args.set), args.port)


def _fetch(args: argparse.Namespace) -> None:
    if sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    from star.hub.fetch import fetch

    for line in fetch(configuration.load(args.config, args.set)):
        print(line, flush=True)


def _config(args: argparse.Namespace) -> None:
    if args.migrate is None:
        print(yaml.safe_dump(configuration.load(args.config, args.set).model_dump(mode="json"), sort_keys=False), end="")
        return
    old = document.read(args.migrate)
    new = migrate.migrate(old)
    out = args.out or args.migrate
    if out.exists():
        kept = out.with_name(f"{out.name}.old")
        if kept.exists():
            raise InputError(f"{kept}: is there already; move it away, or name another file with --out")
        out.rename(kept)
        print(f"{out}: what it was is kept as {kept}, comments and all; they are not carried over")
    write_text(out, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))
    print(*migrate.said(old, new), f"{out}: written", sep="\n")


def _doctor(args: argparse.Namespace) -> int:
    from star.doctor.examine import examine

    return examine(configuration.load(args.config, args.set))


def _pretrain(args: argparse.Namespace) -> None:
    from star.pretraining import stage

    stage.run(configuration.load(args.config, args.set), args.out, args.work, args.recipe)


def parser() -> argparse.ArgumentParser:
    """The parser of `star STAGE`."""
    parser = argparse.ArgumentParser(prog="star", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    _add_making(stages)
    _add_looking(stages)
    _add_upkeep(stages)
    return parser


def _stage(stages: Stages, name: str, function: object, summary: str) -> argparse.ArgumentParser:
    """A stage with the options that all have."""
    sub = stages.add_parser(name, help=summary, description=summary)
    sub.set_defaults(function=function)
    default = Path("config/miniature.yaml")
    sub.add_argument(
        "--config", type=Path, nargs="+", default=[default], help=f"configuration file, later ones win (default: {default})"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override, which wins over every file; may be repeated",
    )
    return sub


def _add_run(sub: argparse.ArgumentParser, task: bool = True) -> None:
    sub.add_argument("--task", required=task, help="a key of `tasks:`")
    sub.add_argument("--method", required=task, help="a key of `methods:` (or base, where nothing is trained)")
    sub.add_argument("--seed", type=int, default=0)


def _add_making(stages: Stages) -> None:
    """From prompts to scores."""
    stage = functools.partial(_stage, stages)
    s = stage("prompts", _prompts, "write the prompt records of a task, or show the core content of some")
    s.add_argument("--task", help="a key of `tasks:`")
    s.add_argument("--split", choices=make.SPLITS)
    s.add_argument("--out", type=Path)
    s.add_argument("--show-core", type=Path, metavar="FILE", help="print a file's prompts with core content and token columns")

    s = stage("train", _train, "train one method on one task; goes on where a stopped run left off")
    _add_run(s)
    s.add_argument("--prompts", type=Path, help="prompt records (default: the task's training set)")
    s.add_argument("--out", type=Path)
    s.add_argument("--start-over", action="store_true", help="set checkpoints of other settings aside instead of refusing them")
    s.add_argument("--plan", action="store_true", help="print batch numbers and a memory estimate, train nothing")

    s = stage("sample", _sample, "sample images of checkpoints in GenEval's layout")
    s.add_argument("--prompts", type=Path, required=True)
    s.add_argument("--out", type=Path, nargs="+", required=True, help="a folder, or one for each adapter")
    s.add_argument("--adapter", type=Path, nargs="+", help="adapter/ folders of checkpoints (default: the base itself)")
    s.add_argument("--images", type=int, help="images a prompt (default: evaluation.images_per_prompt)")
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--start-over", action="store_true", help="drop pictures of other weights or settings")

    s = stage("score", _score, "score folders of images, made by anything, or stored detections")
    which = s.add_mutually_exclusive_group(required=True)
    known = f"{', '.join(configuration.SCORERS)}, service:NAME, judge:NAME, or module:function"
    which.add_argument("--scorer", metavar="NAME", help=known)
    which.add_argument("--task", metavar="NAME", help="the scorer of a task of the configuration: the first that it reports")
    which.add_argument("--all", action="store_true", help="every scorer that the prompts allow; --out is a folder then")
    s.add_argument(
        "--images", type=Path, nargs="+", help="folders in GenEval's layout, or flat ones of pictures (with --prompts)"
    )
    s.add_argument("--prompts", type=Path, help="prompts of the pictures: .txt, or JSON lines (docs/reference/scorers.md)")
    s.add_argument("--detections", type=Path, metavar="FILE", help="judge GenEval's result lines again instead of pictures")
    s.add_argument("--out", type=Path, nargs="+", required=True, help="a file for each folder of images")
    s.add_argument("--guards", type=Path, nargs="+", help="also measure the collapse guards into these JSON files")


def _add_looking(stages: Stages) -> None:
    """What is made of scores, maps and gradients."""
    stage = functools.partial(_stage, stages)
    s = stage("tables", _tables, "aggregate results into tables and figures")
    s.add_argument("--out", type=Path, required=True)

    s = stage("report", _report, "put pictures, curves, tables and maps on one HTML page")
    s.add_argument("--out", type=Path, required=True, help="the page")

    s = stage("evidence", _evidence, "compare methods over several seeds: tables, figures and a page from collected runs")
    s.add_argument("--data", type=Path, help="folder of collected runs, small enough to keep in git")
    s.add_argument("--collect", action="store_true", help="first collect the runs that are finished into --data")
    s.add_argument("--out", type=Path, help="where to write tables.md, tables/ and figures/ (default: nowhere)")
    s.add_argument("--check", type=Path, metavar="PAGE", help="compare every number that a page quotes with the tables")

    s = stage("maps", _maps, "draw allocation maps over the denoising steps on their images")
    _add_run(s)
    s.add_argument("--prompts", type=Path, required=True)
    s.add_argument("--out", type=Path, required=True)
    s.add_argument("--adapter", type=Path)
    s.add_argument("--count", type=int, default=6, help="number of prompts (default: %(default)s)")
    what = s.add_mutually_exclusive_group()
    what.add_argument("--localisation", action="store_true", help="measure every block against the true objects, do not draw")
    what.add_argument("--by-prompt", action="store_true", help="measure how concentrated the maps of every prompt are")

    credit.add_arguments(stage("credit", credit.run, "measure how well one batch's gradient points, under every allocation"))


def _add_upkeep(stages: Stages) -> None:
    """Tracking, weights, configurations, people's votes, and what is handed on."""
    stage = functools.partial(_stage, stages)
    s = stage("log", _log, "mirror a run's files to MLflow")
    _add_run(s, task=False)
    s.add_argument("--run", type=Path, help="the run's folder")
    s.add_argument("--tables", action="store_true", help="mirror tables and figures instead of a run")
    s.add_argument("--credit", type=Path, metavar="DIR", help="mirror a task's measurement of credit instead of a run")

    s = stage("ui", _ui, "show the runs in MLflow, on this machine only, until Ctrl-C")
    s.add_argument("--port", type=int, default=5000, help="default: %(default)s")

    stage("fetch", _fetch, "bring what a configuration needs from the network into this machine's caches")

    s = stage("config", _config, "print the configuration with everything resolved, or rewrite one of an earlier version")
    s.add_argument("--migrate", type=Path, metavar="FILE", help="rewrite FILE in today's keys; the old one is kept as FILE.old")
    s.add_argument("--out", type=Path, help="where to write it instead (default: FILE itself)")

    stage("doctor", _doctor, "check what a configuration needs and say what to do")

    kit_help = "try everything small on this machine: weights, scorers, each objective; one file to send back"
    kit.add_arguments(stage("kit", kit.run, kit_help))

    compare.add_compare_arguments(stage("compare", compare.compare, "write a page for judging two folders of pictures blind"))
    compare.add_votes_arguments(stage("votes", compare.votes, "sum people's votes up: win rate, agreement, scores beside it"))

    export.add_arguments(stage("export", export.run, "write an adapter with its model card into a folder to hand on"))

    s = stage("pretrain-miniature", _pretrain, "train the miniature base and its preference model; resumable")
    s.add_argument("--out", type=Path, required=True)
    s.add_argument("--work", type=Path, required=True)
    s.add_argument("--recipe", action="append", default=[], metavar="PART.KEY=VALUE", help="change base.KEY or preference.KEY")


def _require_places(args: argparse.Namespace) -> None:
    """Raise InputError, before any work, when what a stage writes cannot be written where it is to go."""
    folders = args.stage not in _WRITE_A_FILE or (args.stage == "score" and args.all)
    for option, folder in (("out", folders), ("guards", False), ("work", True)):
        given = getattr(args, option, None) or []
        for place in given if isinstance(given, list) else [given]:
            require_writable(place, folder)
    if getattr(args, "collect", False) and args.data is not None:
        require_writable(args.data, folder=True)


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    quiet_libraries()
    _print_anything()
    args = parser().parse_args(argv)
    try:
        declare_torchvision()
        _require_places(args)
        return args.function(args) or 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
        print(f"star {args.stage}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except (InputError, Diverged, ScorerFailed, Stalled, Preempted) as error:
        print(f"star {args.stage}: {error}", file=sys.stderr)
        return {InputError: 2, Diverged: 1, ScorerFailed: 1, Stalled: 1, Preempted: 75}[type(error)]
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(
            f"star {args.stage}: {error.filename or 'a file'}: {error.strerror}; make room or name another place, and give the "
            "same command again",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
