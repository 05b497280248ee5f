"""Objectives held against each other: reward over images and over seconds, and what half of a baseline's gain costs.

A curve is the mean reward of an epoch's rollouts, its running mean over three epochs, minus the mean over seeds of the first
epoch's reward by the same sampler, which is the untrained policy's. Half of the baseline's gain is half of the last value of
its mean curve. Ratios pair seeds; their intervals are Student's on the logarithm, over seeds.

    python -m star.analysis.objectives --config config/experiments/objectives-miniature.yaml --out docs/results/objectives

Shapes: K epochs, S seeds. Source: ours.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from star import layout
from star.analysis import style, text
from star.analysis.results import run_metrics
from star.analysis.statistics import Interval, student, value_at
from star.config import Config, load, run_settings
from star.errors import InputError
from star.files import write_text
from star.objectives.door import make_objective

RUNNING = 3  # epochs of a running mean
_COSTS = ("images", "seconds")
_RUN = ["task", "method", "seed"]


def curves(config: Config) -> pd.DataFrame:
    """One row an epoch of every finished training: task, method, seed, epoch, reward, gain, images and seconds so far.

    Trainings that are not finished are left out, whole. Raises InputError when none is.
    """
    finished = [run for run in layout.runs(config, base=False) if layout.run(config, *run).trained.exists()]
    if not finished:
        raise InputError(f"{layout.experiment(config)}: no finished training; run snakemake first")
    rows = pd.concat([run_metrics(config, *run) for run in finished], ignore_index=True)
    runs = rows.groupby(_RUN, sort=False)
    noisy = {method: make_objective(run_settings(config, task, method)).noisy for task, method, _ in finished}
    kind = pd.MultiIndex.from_arrays([rows["task"], rows["method"].map(noisy)])
    start = rows[rows["epoch"] == 1].groupby([rows["task"], rows["method"].map(noisy)])["reward_mean"].mean()
    smooth = runs["reward_mean"].transform(lambda reward: reward.rolling(RUNNING, min_periods=1).mean())
    return pd.DataFrame(
        {
            **{name: rows[name] for name in (*_RUN, "epoch")},
            "reward": rows["reward_mean"],
            "gain": smooth - start.reindex(kind).to_numpy(),
            **{cost: runs[cost].cumsum() for cost in _COSTS},
        }
    )


def half_gain(curve: pd.DataFrame, baseline: str) -> pd.Series:
    """Half of the baseline's gain, by task: half of its mean curve's last value."""
    own = curve[curve["method"] == baseline]
    last = own[own["epoch"] == own.groupby("task")["epoch"].transform("max")]
    return last.groupby("task")["gain"].mean() / 2


def costs(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """What every training needs to half of the baseline's gain: task, method, seed, images, seconds; nan: not reached.

    The value lies on the straight line between the epochs; a curve begins at no gain and no cost.
    """
    half = half_gain(curve, baseline)
    rows = []
    for (task, method, seed), run in curve.groupby(_RUN, sort=False):
        gain_K = np.concatenate([[0.0], run["gain"]])
        at = {cost: value_at(half[task], gain_K, np.concatenate([[0.0], run[cost]])) for cost in _COSTS}
        rows.append({"task": task, "method": method, "seed": seed, **at})
    return pd.DataFrame(rows)


def ratio(baseline_S: np.ndarray, other_S: np.ndarray) -> Interval:
    """How many times the baseline's cost is the other's, geometric mean over paired seeds; nan where one was not reached."""
    if not len(baseline_S) or not (np.isfinite(baseline_S).all() and np.isfinite(other_S).all()):
        return Interval(np.nan, np.nan, np.nan)
    return Interval(*np.exp(student(np.log(baseline_S / other_S))))


def table(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """A row a task and method: seeds, reward and gain at the end, seeds that reach half the gain, its cost and the ratios.

    A ratio is the baseline's cost over the method's, for the seeds that both have; nan where one of these did not get there.
    """
    at = costs(curve, baseline).set_index(_RUN).sort_index()
    last = curve[curve["epoch"] == curve.groupby("task")["epoch"].transform("max")]
    rows = []
    for (task, method), end in last.groupby(["task", "method"], sort=False):
        own, base = (at.loc[(task, name)] for name in (method, baseline))
        row = {"task": task, "method": method, "seeds": len(own), "gain": end["gain"].mean()}
        row |= {"reached": int(own["images"].notna().sum())}
        both = own.index.intersection(base.index)
        for cost in _COSTS:
            estimated = ratio(base.loc[both, cost].to_numpy(), own.loc[both, cost].to_numpy())
            row[cost] = own[cost].median() if own[cost].notna().all() else np.nan
            row |= {f"{cost}_ratio": estimated.mean, f"{cost}_low": estimated.low, f"{cost}_high": estimated.high}
        rows.append(row)
    return pd.DataFrame(rows)


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """The table with intervals as texts."""
    shown = found[["task", "method", "seeds"]].copy()
    shown["gain"] = found["gain"].map("{:+.3f}".format)
    shown["reached"] = [f"{row.reached} of {row.seeds}" for row in found.itertuples()]
    for cost in _COSTS:
        shown[f"{cost} to half"] = found[cost].map(lambda value: "-" if pd.isna(value) else f"{value:.0f}")
        limits = (f"{cost}_ratio", f"{cost}_low", f"{cost}_high")
        shown[f"fewer {cost}"] = text.intervals(found, 1, columns=limits)
    return shown


def figure(config: Config, curve: pd.DataFrame, methods: Sequence[str], baseline: str) -> Figure:
    """Reward gained over images (above) and over seconds (below), a column a task: every seed thin, their mean thick."""
    tasks = [task for task in config.tasks if task in set(curve["task"])]
    half = half_gain(curve, baseline)
    drawn, axes = plt.subplots(2, len(tasks), figsize=(3.7 * len(tasks) + 0.3, 6.4), squeeze=False, layout="constrained")
    for column, task in enumerate(tasks):
        for row, cost in enumerate(_COSTS):
            panel = axes[row][column]
            for method in methods:
                own = curve[(curve["task"] == task) & (curve["method"] == method)]
                color = style.look(config, method)["color"]
                for _, run in own.groupby("seed"):
                    panel.plot(run[cost], run["gain"], color=color, alpha=0.3, linewidth=0.8)
                mean = own.groupby("epoch")[[cost, "gain"]].mean()
                panel.plot(mean[cost], mean["gain"], color=color, linewidth=2, label=method)
            style.reference_line(panel, half[task], horizontal=True)
            panel.set(xlabel=f"{cost} of training", ylabel="reward gained")
        axes[0][column].set_title(task)
    style.legend(drawn, axes[0])
    style.caption(
        drawn,
        f"{config.experiment}, {style.seeds(config)}. Mean reward of an epoch's rollouts, running mean over {RUNNING} epochs, "
        f"less the untrained policy's by the same sampler. Grey line: half of {baseline}'s gain at the end.",
    )
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Write the table (.csv, .md), the curves (.csv) and the figure (.svg) of what is finished; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="an experiment whose methods are objectives")
    parser.add_argument(
        "--baseline", default="flow_grpo", help="the method that others are held against (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", help="methods in the figure (default: those without maps)")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="writes NAME.md, .csv, .svg, NAME-curves.csv")
    args = parser.parse_args(argv)
    try:
        config = load(args.config)
        curve = curves(config)
        if args.baseline not in set(curve["method"]):
            raise InputError(f"--baseline {args.baseline}: no finished training of it")
    except InputError as error:
        print(f"star.analysis.objectives: {error}", file=sys.stderr)
        return 2
    found = table(curve, args.baseline)
    task = next(iter(config.tasks))
    scalar = [name for name in dict.fromkeys(curve["method"]) if run_settings(config, task, name).allocation.source == "none"]
    text.save_csv(args.out.with_suffix(".csv"), found)
    text.save_csv(args.out.with_name(f"{args.out.name}-curves.csv"), curve)
    write_text(args.out.with_suffix(".md"), text.markdown(readable(found)) + "\n")
    with plt.rc_context(style.STYLE):
        style.save(figure(config, curve, args.methods or scalar, args.baseline), args.out.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
