"""The figures of an experiment (SVG): learning curves, scores, scores by tag, pictures of the same prompts and noise."""

import math
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from star.analysis.results import shared_methods
from star.analysis.statistics import summary
from star.analysis.style import STYLE, caption, legend, look, save, score_axis, seeds
from star.analysis.text import digits
from star.config import Config, main_scorer

_INTERVAL = "95 % bootstrap interval over test prompts"
_PICTURE_PIXELS = 192


def write(
    folder: Path,
    config: Config,
    scores: pd.DataFrame,
    metrics: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    shown: pd.DataFrame,
) -> None:
    """Write learning_curves.svg, scores.svg, categories.svg and samples.svg into `folder`.

    `scores`, `metrics` and `shown` come from star/analysis/results.py, `tables` (main, categories) from tables.py there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "learning_curves": lambda: learning_curves(config, scores, metrics),
        "scores": lambda: score_dots(config, tables["main"]),
        "categories": lambda: category_dots(config, tables["categories"]),
        "samples": lambda: sample_grid(config, shown),
    }
    with plt.rc_context(STYLE):
        for name, draw in figures.items():
            save(draw(), folder / name)


def learning_curves(config: Config, scores: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Above, the reward of the training images an epoch; below, the test score of every scored checkpoint; shared methods."""
    tasks = list(config.tasks)
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(3.7 * len(tasks) + 0.3, 6.4), squeeze=False, sharex="col", layout="constrained"
    )
    for column, task in enumerate(tasks):
        above, below = axes[:, column]
        shown = shared_methods(config, task)
        for method in shown:
            color = look(config, method)["color"]
            rewards = _rewards(metrics[(metrics["task"] == task) & (metrics["method"] == method)])
            low, high = (rewards["mean"] + sign * 1.96 * rewards["error"] for sign in (-1, 1))
            above.fill_between(rewards.index, low, high, color=color, alpha=0.1, linewidth=0)
            above.plot(rewards.index, rewards["mean"], color=color, alpha=0.35, linewidth=0.8)
            window = 2 * (len(rewards) // 20) + 1
            smooth = rewards["mean"].rolling(window, center=True, min_periods=1).mean()
            above.plot(rewards.index, smooth, color=color, linewidth=2)
        points = _checkpoints(config, scores[scores["task"] == task], task)
        # Dodged sideways, or intervals of methods scored at the same epoch hide each other.
        dodge = 0.012 * points["step"].max()
        for i, method in enumerate(["base", *shown]):
            of_method = points[points["method"] == method]
            shift = dodge * (i - (len(shown) + 1) / 2) if method != "base" else 0
            _dots(below, of_method["step"] + shift, of_method, look(config, method), label=method)
            if method != "base":
                line = pd.concat([points[points["method"] == "base"], of_method])
                below.plot(line["step"] + [0, *[shift] * len(of_method)], line["mean"], color=look(config, method)["color"])
        images = metrics.loc[metrics["task"] == task, "images"].iloc[0] * len(config.seeds)
        n = points["n"].iloc[0]
        above.set_title(f"{task}: training, n = {images} images an epoch")
        below.set_title(f"{task}: test, n = {n} images")
        above.set(ylabel="mean reward")
        below.set(xlabel="epoch (0: untrained)", ylabel=score_axis(config, task))
    legend(figure, axes[1])
    caption(
        figure,
        f"Learning curves, {config.experiment}, {seeds(config)}. Above: mean reward of the images sampled for "
        "training, with noise (SDE); "
        "thin line and band: each epoch and its 95 % interval, 1.96 reward_std / sqrt(n), which treats the images "
        "as independent; thick line: "
        "running mean. Below: test score of the checkpoints, sampled without noise (ODE) from EMA weights; bars: "
        f"{_INTERVAL}; "
        "markers of the same epoch are moved apart.",
    )
    return figure


def _rewards(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of the epochs' mean rewards, and its standard error; index epoch."""
    variance = runs["reward_std"] ** 2 / runs["images"]
    epochs = runs.assign(variance=variance).groupby("epoch")
    count = epochs.size()
    return pd.DataFrame({"mean": epochs["reward_mean"].mean(), "error": np.sqrt(epochs["variance"].sum()) / count})


def _checkpoints(config: Config, scores: pd.DataFrame, task: str) -> pd.DataFrame:
    """Score and interval of every checkpoint that was scored under all seeds."""
    rows = [
        {"method": method, "step": step, **summary(main_scorer(config, task), group)}
        for (method, step), group in scores.groupby(["method", "step"])
        if group["seed"].nunique() == len(config.seeds)
    ]
    return pd.DataFrame(rows).sort_values("step")


def _dots(axes: Axes, x: pd.Series, rows: pd.DataFrame, style: dict, label: str) -> None:
    bars = np.abs(rows[["ci_low", "ci_high"]].to_numpy().T - rows["mean"].to_numpy())
    axes.errorbar(x, rows["mean"], yerr=bars, fmt=style["marker"], color=style["color"], markersize=5, capsize=2, label=label)


def _rows_of_dots(axes: Axes, rows: pd.DataFrame, config: Config, places: int, sign: str = "") -> None:
    """One horizontal dot with its interval a method, from the top down, the value written above it."""
    for y, row in enumerate(rows.itertuples()):
        style = look(config, row.method)
        bars = np.abs([[row.mean - row.ci_low], [row.ci_high - row.mean]])
        axes.errorbar(row.mean, y, xerr=bars, fmt=style["marker"], color=style["color"], markersize=6, capsize=3)
        axes.annotate(
            f"{row.mean:{sign}.{places}f}", (row.mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), rows["method"])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)


def score_dots(config: Config, main: pd.DataFrame) -> Figure:
    """Scores of the final checkpoints of all methods, and below their paired differences to `base` and to `flow_grpo`."""
    tasks = list(config.tasks)
    references = [r for r in ("base", "flow_grpo") if main["metric"].str.endswith(f"-minus-{r}").any()]
    heights = [len(config.methods) + 1.6, *(len(config.methods) + 0.6 - (r != "base") for r in references)]
    figure, axes = plt.subplots(
        1 + len(references),
        len(tasks),
        figsize=(3.6 * len(tasks) + 0.4, 0.42 * sum(heights) + 0.7 * len(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for column, task in enumerate(tasks):
        rows = main[main["task"] == task]
        score = rows[rows["metric"] == task]
        places = digits(score["mean"])
        _rows_of_dots(axes[0][column], score, config, places)
        axes[0][column].set(title=f"{task} (n = {score['n'].iloc[0]})", xlabel=score_axis(config, task))
        for row, reference in enumerate(references, start=1):
            paired = rows[rows["metric"] == f"{task}-minus-{reference}"]
            _rows_of_dots(axes[row][column], paired, config, places, "+")
            axes[row][column].axvline(0, color="#555555", linewidth=1.2, zorder=1)
            axes[row][column].set(xlabel=f"difference to {reference}, paired")
    caption(
        figure,
        f"Final checkpoints, {config.experiment}, {seeds(config)}. n: images scored a method. Bars: {_INTERVAL}. "
        "Differences are paired "
        "by seed, prompt and initial noise: a bar that does not touch the line at 0 is a difference beyond the "
        "choice of prompts.",
    )
    return figure


def category_dots(config: Config, categories: pd.DataFrame) -> Figure:
    """GenEval's score by tag, shared methods side by side."""
    tasks = list(categories["task"].unique())
    tags = list(categories["tag"].unique())
    shown = shared_methods(config, tasks[0]) if tasks else []
    figure, axes = plt.subplots(
        1,
        max(1, len(tasks)),
        figsize=(6.8, 0.7 + 0.2 * len(tags) * (len(shown) + 2)),
        squeeze=False,
        layout="constrained",
    )
    for column, task in enumerate(tasks):
        panel, rows = axes[0][column], categories[categories["task"] == task]
        counts = rows.drop_duplicates("tag").set_index("tag")["n"]
        names = ["base", *shown]
        for i, method in enumerate(names):
            of_method = rows[rows["method"] == method].set_index("tag").loc[tags]
            y = np.arange(len(tags)) + 0.7 * (i - (len(names) - 1) / 2) / len(names)
            bars = np.abs(of_method[["ci_low", "ci_high"]].to_numpy().T - of_method["mean"].to_numpy())
            style = look(config, method)
            panel.errorbar(
                of_method["mean"],
                y,
                xerr=bars,
                fmt=style["marker"],
                color=style["color"],
                markersize=5,
                capsize=2,
                label=method,
            )
        for y in np.arange(len(tags) - 1) + 0.5:
            panel.axhline(y, color="#cccccc", linewidth=0.8)
        panel.set_yticks(range(len(tags)), [f"{tag}\nn = {counts[tag]}" for tag in tags])
        panel.set(ylim=(len(tags) - 0.5, -0.5), xlim=(-0.02, 1.02), xlabel=f"{task}: share of correct images")
        panel.grid(axis="y", visible=False)
        legend(figure, [panel])
    caption(
        figure,
        f"Scores by tag of the final checkpoints, {config.experiment}, {seeds(config)}. n: images a method. "
        "Overall: unweighted mean "
        f"of the tags. Bars: {_INTERVAL}; none where all prompts of a tag scored alike.",
    )
    return figure


def sample_grid(config: Config, shown: pd.DataFrame) -> Figure:
    """The same prompts and noise under every shared method: a row a prompt, a column a method, with scores."""
    names = {task: ["base", *shared_methods(config, task)] for task in config.tasks}
    size, gap, label, heading = 1.15, 0.27, 1.9, 0.42
    prompts = shown.drop_duplicates(["task", "prompt_id"])
    width = label + max(map(len, names.values())) * (size + 0.12)
    height = len(prompts) * (size + gap) + len(config.tasks) * heading
    figure = plt.figure(figsize=(width, height))
    top = height
    for task in config.tasks:
        figure.text(0.02, (top - 0.28) / height, task, fontsize=11, fontweight="bold")
        for i, method in enumerate(names[task]):
            x = (label + (i + 0.5) * (size + 0.12)) / width
            figure.text(x, (top - 0.28) / height, method, ha="center", fontsize=9, color=look(config, method)["color"])
        top -= heading
        places = digits(shown.loc[shown["task"] == task, "score"])
        for prompt in prompts.loc[prompts["task"] == task, "prompt_id"]:
            rows = shown[(shown["task"] == task) & (shown["prompt_id"] == prompt)].set_index("method")
            title = textwrap.fill(textwrap.shorten(rows["prompt"].iloc[0], 130, placeholder=" …"), 22)
            figure.text(0.02, (top - size / 2) / height, title, va="center", fontsize=8.5)
            for i, method in enumerate(names[task]):
                place = (label + i * (size + 0.12) + 0.06, top - size, size, size)
                axes = figure.add_axes([place[0] / width, place[1] / height, size / width, size / height])
                axes.imshow(_picture(rows.loc[method, "picture"]), interpolation="none")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
                axes.spines[:].set_color("#bbbbbb")
                score = rows.loc[method, "score"]
                axes.set_xlabel(f"score {score:.{places}f}".removesuffix(".000"), fontsize=8.5, labelpad=2)
            top -= size + gap
    caption(
        figure,
        f"Samples of the final checkpoints, {config.experiment}, seed {config.seeds[0]}. A row: one test prompt "
        "under every method from the same "
        "initial noise; below each picture its score (of scorer geneval: 1 correct, 0 not). The prompts lie evenly in the "
        "test set, not chosen by score.",
    )
    return figure


def _picture(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) bytes, small ones enlarged by whole pixels, large ones reduced."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    if max(image.size) > _PICTURE_PIXELS:
        image.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS), Image.Resampling.LANCZOS)
        return np.asarray(image)
    factor = math.ceil(_PICTURE_PIXELS / max(image.size))
    return np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)
