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

from star.analysis.results import main_scores, shared_methods
from star.analysis.statistics import summary
from star.analysis.style import (
    STYLE,
    caption,
    dot_across,
    legend,
    look,
    reach,
    reference_line,
    rows_axis,
    save,
    say,
    score_axis,
    seeds,
)
from star.analysis.text import digits
from star.config import Config, main_scorer

_INTERVAL = "95 % bootstrap interval over test prompts"
_CI = ["mean", "ci_low", "ci_high"]
_PICTURE_PIXELS = 192
_PICTURE, _GAP, _TITLE, _HEADING = 1.15, 0.27, 1.9, 0.42  # of the sample grid, in inches


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
    figures = {
        "learning_curves": lambda: learning_curves(config, scores, metrics),
        "scores": lambda: score_dots(config, tables["main"]),
        "categories": lambda: category_dots(config, tables["categories"]),
        "samples": lambda: sample_grid(config, shown),
    }
    with plt.rc_context(STYLE):
        for name, draw in figures.items():
            save(draw(), folder / f"{name}.svg")


def learning_curves(config: Config, scores: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Above, the reward of the training images an epoch; below, the test score of every scored epoch; shared methods."""
    tasks = list(config.tasks)
    size = (3.7 * len(tasks) + 0.3, 6.4)
    figure, axes = plt.subplots(2, len(tasks), figsize=size, squeeze=False, sharex="col", layout="constrained")
    for column, task in enumerate(tasks):
        _reward_lines(axes[0][column], config, metrics[metrics["task"] == task], task)
        _score_lines(axes[1][column], config, main_scores(config, scores, task), task)
    legend(figure, axes[1])
    caption(
        figure,
        f"Learning curves, {config.experiment}, {seeds(config)}. Above: mean reward of the images sampled for training, as the "
        "objective samples them; thin line and band: each epoch and its 95 % interval, 1.96 reward_std / sqrt(n), which treats "
        "the images as independent; thick line: running mean. Below: test score of the checkpoints, sampled without noise "
        f"(ODE) from EMA weights; bars: {_INTERVAL}; markers of the same epoch are moved apart.",
    )
    return figure


def _reward_lines(axes: Axes, config: Config, metrics: pd.DataFrame, task: str) -> None:
    for method in shared_methods(config, task):
        color = look(config, method)["color"]
        rewards = _rewards(metrics[metrics["method"] == method])
        low, high = (rewards["mean"] + sign * 1.96 * rewards["error"] for sign in (-1, 1))
        axes.fill_between(rewards.index, low, high, color=color, alpha=0.1, linewidth=0)
        axes.plot(rewards.index, rewards["mean"], color=color, alpha=0.35, linewidth=0.8)
        window = 2 * (len(rewards) // 20) + 1
        smooth = rewards["mean"].rolling(window, center=True, min_periods=1).mean()
        axes.plot(rewards.index, smooth, color=color, linewidth=2)
    images = metrics["images"].iloc[0] * len(config.seeds)
    axes.set(title=f"{task}: training, n = {images} images an epoch", ylabel="mean reward")


def _rewards(epochs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of the epochs' mean rewards, and its standard error; index epoch."""
    variance = epochs["reward_std"] ** 2 / epochs["images"]
    by_epoch = epochs.assign(variance=variance).groupby("epoch")
    error = np.sqrt(by_epoch["variance"].sum()) / by_epoch.size()
    return pd.DataFrame({"mean": by_epoch["reward_mean"].mean(), "error": error})


def _score_lines(axes: Axes, config: Config, scores: pd.DataFrame, task: str) -> None:
    scorer, shown = main_scorer(config, task), shared_methods(config, task)
    points = _by_epoch(config, scores, scorer)
    base = points[points["method"] == "base"]
    axes.errorbar(base["epoch"], base["mean"], yerr=reach(base, _CI), **_marked(config, "base"), label="base")
    # Dodged sideways, or intervals of methods scored at the same epoch hide each other.
    dodge = 0.012 * points["epoch"].max()
    for i, method in enumerate(shown):
        of_method = points[points["method"] == method]
        x = of_method["epoch"] + dodge * (i - (len(shown) - 1) / 2)
        axes.errorbar(x, of_method["mean"], yerr=reach(of_method, _CI), **_marked(config, method), label=method)
        line = pd.concat([base, of_method])
        axes.plot([*base["epoch"], *x], line["mean"], color=look(config, method)["color"])
    axes.set(title=f"{task}: test, n = {points['n'].iloc[0]} images", ylabel=score_axis(scorer))
    axes.set_xlabel("epoch (0: untrained)")


def _marked(config: Config, method: str) -> dict:
    return look(config, method) | {"linestyle": "none", "markersize": 5, "capsize": 2}


def _by_epoch(config: Config, scores: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """Score and interval of every epoch that was scored under all seeds."""
    rows = [
        {"method": method, "epoch": epoch, **summary(scorer, of_epoch)}
        for (method, epoch), of_epoch in scores.groupby(["method", "epoch"])
        if of_epoch["seed"].nunique() == len(config.seeds)
    ]
    return pd.DataFrame(rows).sort_values("epoch")


def _method_rows(axes: Axes, config: Config, rows: pd.DataFrame, places: int, sign: str = "") -> None:
    """One horizontal dot with its interval a method, from the top down, the value written above it."""
    for y, (method, *estimate) in enumerate(rows[["method", *_CI]].itertuples(index=False, name=None)):
        style = look(config, method)
        dot_across(axes, y, estimate, fmt=style["marker"], color=style["color"])
        say(axes, f"{estimate[0]:{sign}.{places}f}", estimate[0], y)
    rows_axis(axes, list(rows["method"]))
    axes.margins(x=0.12)


def score_dots(config: Config, main: pd.DataFrame) -> Figure:
    """Scores of the final checkpoints of all methods, and below their paired differences to `base` and to `flow_grpo`."""
    tasks = list(config.tasks)
    references = [name for name in ("base", "flow_grpo") if main["metric"].str.endswith(f"-minus-{name}").any()]
    methods = len(config.methods)
    heights = [methods + 1.6, *(methods + (0.6 if name == "base" else -0.4) for name in references)]
    figure, axes = plt.subplots(
        len(heights),
        len(tasks),
        figsize=(3.6 * len(tasks) + 0.4, 0.42 * sum(heights) + 0.7 * len(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for column, task in enumerate(tasks):
        scorer = main_scorer(config, task)
        of_task = main[main["task"] == task]
        score = of_task[of_task["metric"] == scorer]
        places = digits(score["mean"])
        _method_rows(axes[0][column], config, score, places)
        axes[0][column].set(title=f"{task} (n = {score['n'].iloc[0]})", xlabel=score_axis(scorer))
        for panel, reference in zip(axes[1:, column], references, strict=True):
            paired = of_task[of_task["metric"] == f"{scorer}-minus-{reference}"]
            _method_rows(panel, config, paired, places, "+")
            reference_line(panel, 0)
            panel.set_xlabel(f"difference to {reference}, paired")
    caption(
        figure,
        f"Final checkpoints, {config.experiment}, {seeds(config)}. n: images scored a method. Bars: {_INTERVAL}. "
        "Differences are paired by seed, prompt and initial noise: a bar that does not touch the line at 0 is a difference "
        "beyond the choice of prompts.",
    )
    return figure


def category_dots(config: Config, categories: pd.DataFrame) -> Figure:
    """Scores by tag, shared methods side by side, of the tasks whose score is a mean over tags."""
    tasks, tags = list(categories["task"].unique()), list(categories["tag"].unique())
    names = ["base", *(shared_methods(config, tasks[0]) if tasks else [])]
    size = (6.8 * max(1, len(tasks)), 0.7 + 0.2 * len(tags) * (len(names) + 1))
    figure, axes = plt.subplots(1, max(1, len(tasks)), figsize=size, squeeze=False, layout="constrained")
    for panel, task in zip(axes[0], tasks, strict=False):
        _tag_rows(panel, config, categories[categories["task"] == task], ["base", *shared_methods(config, task)])
        panel.set_xlabel(f"{task}: share of correct images")
    if tasks:
        legend(figure, axes[0])
    caption(
        figure,
        f"Scores by tag of the final checkpoints, {config.experiment}, {seeds(config)}. n: images a method. "
        f"Overall: unweighted mean of the tags. Bars: {_INTERVAL}; none where all prompts of a tag scored alike.",
    )
    return figure


def _tag_rows(axes: Axes, config: Config, rows: pd.DataFrame, names: list[str]) -> None:
    tags = list(rows["tag"].unique())
    counts = rows.drop_duplicates("tag").set_index("tag")["n"]
    for i, method in enumerate(names):
        of_method = rows[rows["method"] == method].set_index("tag").loc[tags]
        y = np.arange(len(tags)) + 0.7 * (i - (len(names) - 1) / 2) / len(names)
        axes.errorbar(of_method["mean"], y, xerr=reach(of_method, _CI), **_marked(config, method), label=method)
    for y in np.arange(len(tags) - 1) + 0.5:
        axes.axhline(y, color="#cccccc", linewidth=0.8)
    rows_axis(axes, [f"{tag}\nn = {counts[tag]}" for tag in tags])
    axes.set(ylim=(len(tags) - 0.5, -0.5), xlim=(-0.02, 1.02))


def sample_grid(config: Config, shown: pd.DataFrame) -> Figure:
    """The same prompts and noise under every shared method: a row a prompt, a column a method, with scores."""
    names = {task: ["base", *shared_methods(config, task)] for task in config.tasks}
    prompts = shown.drop_duplicates(["task", "prompt_id"])
    column = _PICTURE + 0.12
    width = _TITLE + max(map(len, names.values())) * column
    height = len(prompts) * (_PICTURE + _GAP) + len(config.tasks) * _HEADING
    figure = plt.figure(figsize=(width, height))
    top = height
    for task in config.tasks:
        # A heading: the task and its methods.
        y = (top - 0.28) / height
        figure.text(0.02, y, task, fontsize=11, fontweight="bold")
        for i, method in enumerate(names[task]):
            x = (_TITLE + (i + 0.5) * column) / width
            figure.text(x, y, method, ha="center", fontsize=9, color=look(config, method)["color"])
        top -= _HEADING
        # A row a prompt.
        of_task = shown[shown["task"] == task]
        places = digits(of_task["score"])
        for _, rows in of_task.groupby("prompt_id", sort=False):
            rows = rows.set_index("method")
            title = textwrap.fill(textwrap.shorten(rows["prompt"].iloc[0], 130, placeholder=" …"), 22)
            figure.text(0.02, (top - _PICTURE / 2) / height, title, va="center", fontsize=8.5)
            for i, method in enumerate(names[task]):
                left, bottom = _TITLE + i * column + 0.06, top - _PICTURE
                place = (left / width, bottom / height, _PICTURE / width, _PICTURE / height)
                label = f"score {rows.loc[method, 'score']:.{places}f}".removesuffix(".000")
                _show(figure.add_axes(place), rows.loc[method, "picture"], label)
            top -= _PICTURE + _GAP
    caption(
        figure,
        f"Samples of the final checkpoints, {config.experiment}, seed {config.seeds[0]}. A row: one test prompt "
        "under every method from the same initial noise; below each picture its score. The "
        "prompts lie evenly in the test set, not chosen by score.",
    )
    return figure


def _show(axes: Axes, picture: Path, label: str) -> None:
    axes.imshow(_pixels(picture), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#bbbbbb")
    axes.set_xlabel(label, fontsize=8.5, labelpad=2)


def _pixels(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) bytes, small ones enlarged by whole pixels, large ones reduced."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    if max(image.size) > _PICTURE_PIXELS:
        image.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS), Image.Resampling.LANCZOS)
        return np.asarray(image)
    factor = math.ceil(_PICTURE_PIXELS / max(image.size))
    return np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)
