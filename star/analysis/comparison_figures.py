"""Figures of several seeds (SVG): methods compared in pairs, diagnostics, cost, guards. Every panel names axes, bars and n.

`tables` are the frames of comparisons.py and tables.py by the names of their functions.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from star.analysis.comparisons import KINDS, Pair, by_task, of_task
from star.analysis.results import shared_methods
from star.analysis.style import (
    COLORS,
    SCORE_AXES,
    caption,
    dot_across,
    legend,
    look,
    reach,
    reference_line,
    rows_axis,
    say,
    score_axis,
    seeds,
)
from star.analysis.tables import INTERVAL
from star.analysis.text import digits, probability
from star.config import Config, main_scorer

Tables = dict[str, pd.DataFrame]
_BLUE, _SKY, _GREY = COLORS[0], COLORS[5], "#999999"
_CROSSED = "bars: 95 % interval over seeds and prompts (bootstrap)"
_BELOW = "grey: mixed model; small dots: single seeds. p: mixed model, after Holm's correction"
_OVER_SEEDS = "bars: 95 % interval over seeds (Student's t)"
_KINDS = {"local": "objects only", "dark": "on a dark ground", "light": "on a light ground", "one_color": "all of one colour"}
_PARTS = dict(zip(("rollout", "update", "reward", "maps"), COLORS, strict=False))
_AXES = {
    "map_localisation": "map mass inside the true objects,\nover their share of the area (1: chance)",
    "clip_fraction": "share of clipped ratios",
    "update_norm": "L2 norm of a weight update",
    "grad_norm": "L2 norm of the gradient",
    "diversity": "diversity within a prompt",
}


# Differences of pairs.


def _difference_rows(axes: Axes, rows: pd.DataFrame, by_seed: pd.DataFrame, axis: str) -> None:
    """A row a pair, from the top down: the difference, its bootstrap interval, below it the mixed model's and every seed's."""
    places = digits(rows["mean"])
    each_seed = by_seed.set_index(["task", "method", "reference"]).sort_index()["difference"]
    for y, row in enumerate(rows.itertuples()):
        dot_across(axes, y, (row.mean, row.low, row.high), fmt="o", color=_BLUE)
        dot_across(axes, y + 0.2, (row.mixed_mean, row.mixed_low, row.mixed_high), fmt="|", color=_GREY, linewidth=1)
        differences = each_seed.loc[row.task, row.method, row.reference]
        axes.plot(differences, [y + 0.36] * len(differences), "o", color=_SKY, markersize=3.5, alpha=0.8)
        p = "" if np.isnan(row.p_holm) else f"   p {probability(row.p_holm)}"
        say(axes, f"{row.mean:+.{places}f}{p}", row.mean, y)
    few = [f" ({n} seeds)" if n < rows["seeds"].max() else "" for n in rows["seeds"]]
    rows_axis(axes, rows["method"] + few + "\n− " + rows["reference"])
    reference_line(axes, 0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(f"difference in {axis}")
    axes.margins(x=0.3)


def _sample(rows: pd.DataFrame) -> str:
    most = rows.loc[rows["seeds"].idxmax()]
    return f"{most['prompts']} prompts × {most['seeds']} seeds, n = {most['images']}"


def differences(
    config: Config,
    tables: Tables,
    title: str,
    pairs: Collection[Pair],
    diagnostics: Sequence[str] = (),
    by_step: bool = False,
) -> Figure:
    """The paired differences of some pairs, a panel a task; beside them diagnostics of the first task, localisation by step."""
    rows_of = by_task(config, tables["comparisons"], pairs)
    task = next(iter(rows_of))
    measured = of_task(tables["diagnostics"], task)
    quantities = [quantity for quantity in diagnostics if quantity in set(measured["quantity"])]
    by_step = by_step and len(tables["localisation"]) > 0
    columns, rows = len(rows_of) + len(quantities) + by_step, max(map(len, rows_of.values()))
    size = (max(6.4, 3.9 * columns), 1.5 + 0.62 * max(rows, 3))
    figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
    panels = iter(axes[0])
    for name, of_pairs in rows_of.items():
        panel = next(panels)
        _difference_rows(panel, of_pairs, tables["by_seed"], score_axis(main_scorer(config, name)))
        panel.set_title(f"{name}: {_sample(of_pairs)}")
    methods = list(dict.fromkeys(method for pair in pairs for method in pair[::-1]))
    for quantity in quantities:
        panel = next(panels)
        _diagnostic_rows(panel, config, measured[measured["quantity"] == quantity], methods)
        panel.set_xlabel(_AXES[quantity])
    if by_step:
        _localisation(next(panels), tables["localisation"])
    notes = f" Diagnostics: means over the epochs, {_OVER_SEEDS}." if quantities or by_step else ""
    caption(
        figure,
        f"{title}. Final test scores of {config.experiment}, paired by seed, prompt and initial "
        f"noise; n: pairs of images. Blue {_CROSSED}; {_BELOW}.{notes}",
    )
    return figure


def _diagnostic_rows(axes: Axes, config: Config, rows: pd.DataFrame, methods: list[str]) -> None:
    """A quantity on one task, a row a method."""
    task, most = rows["task"].iloc[0], rows["seeds"].max()
    rows = rows.set_index("method")
    rows = rows.loc[[method for method in methods if method in rows.index]]
    for y, (method, *estimate) in enumerate(rows[INTERVAL].itertuples(name=None)):
        style = look(config, method)
        dot_across(axes, y, estimate, fmt=style["marker"], color=style["color"])
        say(axes, f"{estimate[0]:.3g}", estimate[0], y)
    rows_axis(axes, list(rows.index))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_title(f"{task}: {most} trainings a method")
    axes.margins(x=0.25)


def _localisation(axes: Axes, table: pd.DataFrame) -> None:
    for task, rows in table.groupby("task", sort=False):
        axes.errorbar(rows["step"] + 1, rows["mean"], yerr=reach(rows), marker="o", capsize=3, label=task)
    reference_line(axes, 1, horizontal=True)
    axes.set(
        xlabel="denoising step (1: pure noise)",
        ylabel="attention inside the true objects,\nover their share of the area",
        title=f"star in training, {table['seeds'].max()} seeds",
    )
    axes.legend()


def main(config: Config, tables: Tables, pairs: Collection[Pair]) -> Figure:
    """Above, the main comparisons on every task; below, test scores by epoch of the methods of all tasks."""
    rows_of = by_task(config, tables["comparisons"], pairs)
    above, below = 0.8 + 0.62 * max(map(len, rows_of.values())), 3.4
    size = (max(6.4, 3.9 * len(rows_of)), above + below + 0.6)
    figure, axes = plt.subplots(
        2, len(rows_of), figsize=size, squeeze=False, layout="constrained", height_ratios=[above, below]
    )
    for column, (task, rows) in enumerate(rows_of.items()):
        axis = score_axis(main_scorer(config, task))
        _difference_rows(axes[0][column], rows, tables["by_seed"], axis)
        axes[0][column].set_title(f"{task}: {_sample(rows)}")
        _score_lines(axes[1][column], config, of_task(tables["learning"], task), shared_methods(config, task))
        axes[1][column].set(xlabel="epoch (0: untrained)", ylabel=axis)
    legend(figure, axes[1])
    caption(
        figure,
        f"{config.experiment}, {seeds(config)}. Above: differences of the final test scores, paired by seed, prompt and "
        f"initial noise; n: pairs of images. Blue {_CROSSED}; {_BELOW}. "
        f"Below: test scores by epoch, {_CROSSED}; markers of the same epoch are moved apart.",
    )
    return figure


def _score_lines(axes: Axes, config: Config, points: pd.DataFrame, methods: list[str]) -> None:
    dodge = 0.012 * points["epoch"].max()
    for i, method in enumerate(methods):
        of_method = points[points["method"] == method]
        x = of_method["epoch"] + dodge * (i - (len(methods) - 1) / 2) * (of_method["epoch"] > 0)
        style = look(config, method) | {"markersize": 5, "capsize": 2}
        axes.errorbar(x, of_method["mean"], yerr=reach(of_method), **style, label=method)


# Prompts of global attributes.


def attributes(config: Config, tables: Tables, title: str, task: str) -> Figure:
    """What is learned, what allocation adds, and how concentrated its maps are, by kind of prompt; trained on `task`."""
    table = tables["attributes"]
    axis = score_axis(main_scorer(config, task))
    quantities = {
        "learned": f"flow_grpo − base, {axis}",
        "gain": f"star − flow_grpo, {axis}",
        "effective_area": "effective area of star's maps\n(1: uniform)",
    }
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.4), sharey=True, layout="constrained")
    for panel, (quantity, label) in zip(axes, quantities.items(), strict=True):
        rows = table[(table["quantity"] == quantity) & ~table["contrast"]].set_index("kind").loc[list(KINDS)]
        for y, estimate in enumerate(rows[INTERVAL].itertuples(index=False, name=None)):
            dot_across(panel, y, estimate, fmt="o", color=_BLUE)
            say(panel, f"{estimate[0]:.3g}", estimate[0], y)
        rows_axis(panel, [f"{_KINDS[kind]}\nn = {prompts} prompts" for kind, prompts in rows["prompts"].items()])
        reference_line(panel, 1 if quantity == "effective_area" else 0)
        panel.set_xlabel(label)
        panel.margins(x=0.2)
    caption(
        figure,
        f"{title}; trained on {task}, {config.experiment}, {seeds(config)}. The first three kinds say "
        "the same things, without a ground and on a dark or light one; the last says that all objects have one colour. "
        f"{_CROSSED.capitalize()}.",
    )
    return figure


# Cost.


def cost(config: Config, tables: Tables, title: str) -> Figure:
    """Where an epoch's seconds go, and ratios of time and memory to the scalar objective."""
    seconds, ratios = tables["cost"].set_index(["task", "method"]), tables["cost_ratios"]
    shown = [(task, method) for task in config.tasks for method in shared_methods(config, task)]
    figure, (parts, over) = plt.subplots(1, 2, figsize=(10.5, 1.4 + 0.3 * len(shown)), sharey=True, layout="constrained")
    left = np.zeros(len(shown))
    for part, color in _PARTS.items():
        width = seconds.loc[shown, f"seconds_{part}"].to_numpy()
        parts.barh(range(len(shown)), width, left=left, color=color, label=part)
        left += width
    styles = {"time": (-0.15, {"fmt": "o", "color": COLORS[0]}), "memory": (0.15, {"fmt": "s", "color": COLORS[1]})}
    for y, (task, method) in enumerate(shown):
        for quantity, (shift, style) in styles.items():
            rows = of_task(ratios, task, method=method, quantity=quantity)
            for estimate in rows[INTERVAL].itertuples(index=False, name=None):
                dot_across(over, y + shift, estimate, **style, label=quantity)
    rows_axis(parts, [f"{task}: {method}" for task, method in shown])
    parts.set_xlabel("seconds an epoch (medians)")
    reference_line(over, 1)
    over.grid(axis="y", visible=False)
    over.set_xlabel(f"ratio to flow_grpo, {ratios['seeds'].max()} seeds")
    legend(figure, (parts, over))
    caption(
        figure,
        f"{title}: {config.experiment}. Left: where the seconds of an epoch go. Right: median epoch and peak memory "
        f"over those of flow_grpo with the same seed; {_OVER_SEEDS}. Trainings shared the machine with others, so small "
        "ratios are noise; python -m benchmarks.training times both methods in turn.",
    )
    return figure


# Collapse guards.


def guards(config: Config, tables: Tables, title: str) -> Figure:
    """Guards against the score, epoch by epoch, and their differences at equal score."""
    paths, equal = tables["guard_paths"], tables["guards_at_equal_score"]
    tasks = [task for task in config.tasks if (equal["task"] == task).any()]
    size = (max(6.4, 3.9 * len(tasks)), 9.2)
    figure, axes = plt.subplots(3, len(tasks), figsize=size, squeeze=False, layout="constrained")
    for column, task in enumerate(tasks):
        rows = of_task(equal, task)
        others = [guard for guard in rows["guard"].unique() if guard in SCORE_AXES] or ["color_entropy"]
        for panel, guard in zip(axes[:, column], ("diversity", others[0]), strict=False):
            _guard_path(panel, config, of_task(paths, task), guard)
            panel.set_xlabel(f"test score: {score_axis(main_scorer(config, task))}")
        axes[0][column].set_title(task)
        _diversity_rows(axes[2][column], config, rows)
    legend(figure, axes[0])
    caption(
        figure,
        f"{title}: {config.experiment}, means over {len(config.seeds)} seeds. A line follows a method from the untrained model "
        "through its checkpoints. At the same score, a lower line is a loss that the score does not see. Below: "
        f"differences in diversity where both methods first reach the same score, {_OVER_SEEDS}; the table "
        "guards_at_equal_score has the other guards. Diversity: mean distance between the pictures of a prompt.",
    )
    return figure


def _guard_path(axes: Axes, config: Config, paths: pd.DataFrame, guard: str) -> None:
    for method in shared_methods(config, paths["task"].iloc[0]):
        points, style = paths[paths["method"] == method], look(config, method)
        axes.plot(points["score"], points[guard], **style, markersize=5, label=method)
    start = paths[paths["epoch"] == 0].iloc[0]
    axes.plot(start["score"], start[guard], **look(config, "base"), markersize=8, label="base")
    of_scorer = f"{guard}'s scorer on these pictures" if guard in SCORE_AXES else guard
    axes.set_ylabel(_AXES.get(guard, of_scorer))


def _diversity_rows(axes: Axes, config: Config, equal: pd.DataFrame) -> None:
    rows = equal[(equal["guard"] == "diversity") & equal["mean"].notna()]
    for y, (method, *estimate) in enumerate(rows[["method", *INTERVAL]].itertuples(index=False, name=None)):
        style = look(config, method)
        dot_across(axes, y, estimate, fmt=style["marker"], color=style["color"])
    rows_axis(axes, [f"{row.method}\n({row.seeds} seeds)" for row in rows.itertuples()])
    reference_line(axes, 0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("diversity minus flow_grpo's, at equal score")
    if rows.empty:
        axes.set_title("no seed where both methods gain", fontsize=8)
