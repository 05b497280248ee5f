"""One figure a question (SVG). Every panel names axes, units, what the bars are, and n."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from star.analysis.results import shared_methods
from star.analysis.style import SCORE_AXES, STYLE, caption, legend, look, save, score_axis, seeds
from star.analysis.text import digits, probability
from star.config import Config
from star.evidence.questions import ATTRIBUTES, COST, GUARDS, MAIN, QUESTIONS, Question, attribute_task, compared
from star.evidence.tables import KINDS

Tables = dict[str, pd.DataFrame]
_CROSSED = "bars: 95 % interval over seeds and prompts (bootstrap)"
_BELOW = "grey: mixed model; small dots: single seeds. p: mixed model, after Holm's correction"
_OVER_SEEDS = "bars: 95 % interval over seeds (Student's t)"
_KINDS = {"local": "objects only", "dark": "on a dark ground", "light": "on a light ground", "one_color": "all of one colour"}
_PARTS = {"rollout": "#0072B2", "update": "#D55E00", "reward": "#009E73", "maps": "#CC79A7"}
# Beside the differences of a question: quantities of evidence_diagnostics, with their axis.
_BESIDE = {
    "f": [("map_localisation", "map mass inside the true objects,\nover their share of the area (1: chance)")],
    "i": [("clip_fraction", "share of clipped ratios")],
    "j": [("update_norm", "L2 norm of a weight update"), ("grad_norm", "L2 norm of the gradient")],
}


def write(folder: Path, config: Config, tables: Tables) -> list[str]:
    """Write `folder`/<name>.svg for `main` and every question that the tables can answer; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"main": lambda: main(config, tables)}
    for question in QUESTIONS:
        if question is COST:
            figures[question.name] = lambda: cost(config, tables)
        elif question is GUARDS:
            figures[question.name] = lambda: guards(config, tables)
        elif question is ATTRIBUTES:
            if "evidence_attributes" in tables:
                figures[question.name] = lambda: attributes(config, tables)
        elif _by_task(config, tables, question.pairs):
            figures[question.name] = lambda question=question: differences(config, tables, question)
    with plt.rc_context(STYLE):
        for name, draw in figures.items():
            save(draw(), folder / name)
    return list(figures)


def _bars(axes: Axes, x: float, y: float, low: float, high: float, horizontal: bool = True, **style: object) -> None:
    """A dot with its interval; nothing but the dot where the interval is not known."""
    reach = np.nan_to_num(np.abs([[(x if horizontal else y) - low], [high - (x if horizontal else y)]]))
    axes.errorbar(x, y, **{"xerr" if horizontal else "yerr": reach}, markersize=6, capsize=3, **style)


def _say(axes: Axes, text: str, x: float, y: float) -> None:
    """A small text above a dot, on white: it may lie across the line of zero."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    axes.annotate(text, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, bbox=ground)


def _difference_rows(axes: Axes, rows: pd.DataFrame, by_seed: pd.DataFrame, axis: str) -> None:
    """A row a pair, from the top down: the difference, its bootstrap interval, below it the mixed model's and every seed's."""
    places = digits(rows["mean"])
    seeds = by_seed.set_index(["task", "method", "reference"]).sort_index()["difference"]
    for y, row in enumerate(rows.itertuples()):
        _bars(axes, row.mean, y, row.low, row.high, fmt="o", color="#0072B2")
        _bars(axes, row.mixed_mean, y + 0.2, row.mixed_low, row.mixed_high, fmt="|", color="#999999", linewidth=1)
        each = seeds.loc[row.task, row.method, row.reference]
        axes.plot(each, [y + 0.36] * len(each), "o", color="#56B4E9", markersize=3.5, alpha=0.8)
        text = f"{row.mean:+.{places}f}" + ("" if np.isnan(row.p_holm) else f"   p {probability(row.p_holm)}")
        _say(axes, text, row.mean, y)
    axes.axvline(0, color="#555555", linewidth=1.2, zorder=1)
    few = [f" ({n} seeds)" if n < rows["seeds"].max() else "" for n in rows["seeds"]]
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(range(len(rows)), rows["method"] + few + "\n− " + rows["reference"])
    axes.set(ylim=(len(rows) - 0.4, -0.7), xlabel=f"difference in {axis}")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.3)


def _sample(rows: pd.DataFrame) -> str:
    most = rows.loc[rows["seeds"].idxmax()]
    return f"{most['prompts']} prompts × {most['seeds']} seeds, n = {most['images']}"


def _panels(tasks: Sequence[str], beside: int, rows: int) -> tuple[Figure, np.ndarray]:
    columns = len(tasks) + beside
    size = (max(6.4, 3.9 * columns), 1.5 + 0.62 * max(rows, 3))
    figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, axes[0]


def _by_task(config: Config, tables: Tables, pairs: tuple[tuple[str, str], ...]) -> dict[str, pd.DataFrame]:
    """The comparisons of these pairs, on the tasks that have any."""
    found = {task: compared(tables["evidence"], task, pairs) for task in config.tasks}
    return {task: rows for task, rows in found.items() if len(rows)}


def differences(config: Config, tables: Tables, question: Question) -> Figure:
    """The paired differences of a question, a panel a task, and beside them the diagnostics that belong to it."""
    found = _by_task(config, tables, question.pairs)
    tasks = list(found)
    extra = [q for q in _BESIDE.get(question.letter, ()) if q[0] in set(tables["evidence_diagnostics"]["quantity"])]
    by_step = question.letter == "d" and len(tables["evidence_localisation"]) > 0
    figure, axes = _panels(tasks, len(extra) + by_step, max(map(len, found.values())))
    for panel, (task, rows) in zip(axes, found.items(), strict=False):
        _difference_rows(panel, rows, tables["evidence_by_seed"], score_axis(config, task))
        panel.set_title(f"{task}: {_sample(rows)}")
    for panel, (quantity, axis) in zip(axes[len(tasks) :], extra, strict=False):
        _diagnostic_rows(panel, config, tables["evidence_diagnostics"], question, tasks[0], quantity, axis)
    if by_step:
        _localisation(axes[-1], tables["evidence_localisation"])
    notes = f" Diagnostics: means over the epochs, {_OVER_SEEDS}." if extra or by_step else ""
    caption(
        figure,
        f"({question.letter}) {question.title}. Final test scores of {config.experiment}, paired by seed, prompt and initial "
        f"noise; n: pairs of images. Blue {_CROSSED}; {_BELOW}.{notes}",
    )
    return figure


def _diagnostic_rows(
    axes: Axes, config: Config, table: pd.DataFrame, question: Question, task: str, quantity: str, axis: str
) -> None:
    asked = dict.fromkeys(method for pair in question.pairs for method in pair[::-1])
    rows = table[(table["task"] == task) & (table["quantity"] == quantity)].set_index("method")
    rows = rows.loc[[method for method in asked if method in rows.index]]
    for y, (method, row) in enumerate(rows.iterrows()):
        style = look(config, method)
        _bars(axes, row["mean"], y, row["low"], row["high"], fmt=style["marker"], color=style["color"])
        _say(axes, f"{row['mean']:.3g}", row["mean"], y)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(range(len(rows)), rows.index)
    axes.set(ylim=(len(rows) - 0.4, -0.7), xlabel=axis, title=f"{task}: {rows['seeds'].max()} trainings a method")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.25)


def _localisation(axes: Axes, table: pd.DataFrame) -> None:
    for task, rows in table.groupby("task", sort=False):
        reach = np.nan_to_num(np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy()))
        axes.errorbar(rows["step"] + 1, rows["mean"], yerr=reach, marker="o", capsize=3, label=task)
    axes.axhline(1, color="#555555", linewidth=1.2, zorder=1)
    axes.set(
        xlabel="denoising step (1: pure noise)",
        ylabel="attention inside the true objects,\nover their share of the area",
        title=f"star in training, {table['seeds'].max()} seeds",
    )
    axes.legend()


def main(config: Config, tables: Tables) -> Figure:
    """Above, the main comparisons on every task; below, test scores by epoch of the methods of all tasks."""
    found = _by_task(config, tables, MAIN)
    tasks, above, below = list(found), 0.8 + 0.62 * max(map(len, found.values())), 3.4
    size = (max(6.4, 3.9 * len(tasks)), above + below + 0.6)
    figure, axes = plt.subplots(2, len(tasks), figsize=size, squeeze=False, layout="constrained", height_ratios=[above, below])
    for column, (task, rows) in enumerate(found.items()):
        _difference_rows(axes[0][column], rows, tables["evidence_by_seed"], score_axis(config, task))
        axes[0][column].set_title(f"{task}: {_sample(rows)}")
        shared = shared_methods(config, task)
        curves = tables["evidence_learning"][lambda t, task=task: t["task"] == task]
        dodge = 0.012 * curves["epoch"].max()
        for i, method in enumerate(shared):
            points, style = curves[curves["method"] == method], look(config, method)
            x = points["epoch"] + dodge * (i - (len(shared) - 1) / 2) * (points["epoch"] > 0)
            reach = np.nan_to_num(np.abs(points[["low", "high"]].to_numpy().T - points["mean"].to_numpy()))
            axes[1][column].errorbar(x, points["mean"], yerr=reach, **style, markersize=5, capsize=2, label=method)
        axes[1][column].set(xlabel="epoch (0: untrained)", ylabel=score_axis(config, task))
    legend(figure, axes[1])
    caption(
        figure,
        f"{config.experiment}, {seeds(config)}. Above: differences of the final test scores, paired by seed, prompt and "
        f"initial noise; n: pairs of images. Blue {_CROSSED}; {_BELOW}. "
        f"Below: test scores by epoch, {_CROSSED}; markers of the same epoch are moved apart.",
    )
    return figure


def attributes(config: Config, tables: Tables) -> Figure:
    """(b): what is learned, what allocation adds, and how concentrated its maps are, by kind of prompt."""
    table = tables["evidence_attributes"]
    quantities = {
        "learned": "flow_grpo − base, PickScore",
        "gain": "star − flow_grpo, PickScore",
        "effective_area": "effective area of star's maps\n(1: uniform)",
    }
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.4), sharey=True, layout="constrained")
    for panel, (quantity, axis) in zip(axes, quantities.items(), strict=True):
        rows = table[(table["quantity"] == quantity) & ~table["contrast"]].set_index("kind").loc[list(KINDS)]
        for y, row in enumerate(rows.itertuples()):
            _bars(panel, row.mean, y, row.low, row.high, fmt="o", color="#0072B2")
            _say(panel, f"{row.mean:.3g}", row.mean, y)
        panel.axvline(1 if quantity == "effective_area" else 0, color="#555555", linewidth=1.2, zorder=1)
        panel.set_yticks(range(len(KINDS)), [f"{_KINDS[kind]}\nn = {rows.loc[kind, 'prompts']} prompts" for kind in KINDS])
        panel.set(ylim=(len(KINDS) - 0.4, -0.7), xlabel=axis)
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.2)
    caption(
        figure,
        f"(b) {ATTRIBUTES.title}; trained on {attribute_task(config)}, {config.experiment}, {seeds(config)}. "
        "The first three kinds say the same things, without a ground and on a dark or light one; the last says that all "
        "objects have one colour. "
        f"{_CROSSED.capitalize()}.",
    )
    return figure


def cost(config: Config, tables: Tables) -> Figure:
    """(g): where an epoch's seconds go, and ratios of time and memory to the scalar objective."""
    spent, ratios = tables["evidence_seconds"].set_index(["task", "method"]), tables["evidence_cost"]
    shown = [(task, method) for task in config.tasks for method in shared_methods(config, task)]
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 1.4 + 0.3 * len(shown)), sharey=True, layout="constrained")
    left = np.zeros(len(shown))
    for part, color in _PARTS.items():
        seconds = spent.loc[shown, f"seconds_{part}"].to_numpy()
        axes[0].barh(range(len(shown)), seconds, left=left, color=color, label=part)
        left += seconds
    for y, (task, method) in enumerate(shown):
        for quantity, shift, style in (
            ("time", -0.15, {"fmt": "o", "color": "#0072B2"}),
            ("memory", 0.15, {"fmt": "s", "color": "#D55E00"}),
        ):
            row = ratios[(ratios["task"] == task) & (ratios["method"] == method) & (ratios["quantity"] == quantity)]
            for r in row.itertuples():
                _bars(axes[1], r.mean, y + shift, r.low, r.high, **style, label=f"{quantity}")
    axes[0].set_yticks(range(len(shown)), [f"{task}: {method}" for task, method in shown])
    axes[0].set(ylim=(len(shown) - 0.4, -0.6), xlabel="seconds an epoch (medians)")
    axes[1].axvline(1, color="#555555", linewidth=1.2, zorder=1)
    axes[1].set(xlabel=f"ratio to flow_grpo, {ratios['seeds'].max()} seeds")
    for panel in axes:
        panel.grid(axis="y", visible=False)
    legend(figure, axes)
    caption(
        figure,
        f"(g) {COST.title}: {config.experiment}. Left: where the seconds of an epoch go. Right: median epoch and peak memory "
        f"over those of flow_grpo with the same seed; {_OVER_SEEDS}. Trainings shared the machine with others, so small "
        "ratios are noise; benchmarks/training.py times both methods in turn.",
    )
    return figure


def guards(config: Config, tables: Tables) -> Figure:
    """(h): guards against the score, checkpoint by checkpoint, and their differences at equal score."""
    paths, equal = tables["evidence_guard_paths"], tables["evidence_guards"]
    tasks = [task for task in config.tasks if (equal["task"] == task).any()]
    names = ["diversity", "color_entropy"]
    figure, axes = plt.subplots(3, len(tasks), figsize=(max(6.4, 3.9 * len(tasks)), 9.2), squeeze=False, layout="constrained")
    for column, task in enumerate(tasks):
        other = [guard for guard in equal.loc[equal["task"] == task, "guard"].unique() if guard in SCORE_AXES]
        for row, guard in enumerate((names[0], *(other or names[1:])[:1])):
            panel = axes[row][column]
            for method in shared_methods(config, task):
                points, style = paths[(paths["task"] == task) & (paths["method"] == method)], look(config, method)
                panel.plot(
                    points["score"], points[guard], color=style["color"], marker=style["marker"], markersize=5, label=method
                )
            start = paths[(paths["task"] == task) & (paths["step"] == 0)].iloc[0]
            panel.plot(start["score"], start[guard], **look(config, "base"), markersize=8, label="base")
            label = {"diversity": "diversity within a prompt"}.get(
                guard, f"{guard}'s scorer on these pictures" if guard in SCORE_AXES else guard
            )
            panel.set(xlabel=f"test score: {score_axis(config, task)}", ylabel=label, title=task if row == 0 else "")
        rows = equal[(equal["task"] == task) & (equal["guard"] == "diversity") & equal["mean"].notna()]
        for y, r in enumerate(rows.itertuples()):
            style = look(config, r.method)
            _bars(axes[2][column], r.mean, y, r.low, r.high, fmt=style["marker"], color=style["color"])
        axes[2][column].axvline(0, color="#555555", linewidth=1.2, zorder=1)
        axes[2][column].xaxis.set_major_locator(MaxNLocator(4))
        axes[2][column].set_yticks(range(len(rows)), [f"{r.method}\n({r.seeds} seeds)" for r in rows.itertuples()])
        if rows.empty:
            axes[2][column].set_title("no seed where both methods gain", fontsize=8)
        axes[2][column].set(ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel="diversity minus flow_grpo's, at equal score")
    legend(figure, axes[0])
    n = len(config.seeds)
    caption(
        figure,
        f"(h) {GUARDS.title}: {config.experiment}, means over {n} seeds. A line follows a method from the untrained model "
        "through its checkpoints. At the same score, a lower line is a loss that the score does not see. Below: "
        f"differences in diversity where both methods first reach the same score, {_OVER_SEEDS}; the table evidence_guards has "
        "the other guards. Diversity: mean distance between the pictures of a prompt.",
    )
    return figure
