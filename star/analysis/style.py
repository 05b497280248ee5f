"""How every figure looks: colours and markers of methods, dots with their intervals, captions, legends, files."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star.config import Config
from star.files import whole

# Okabe and Ito's colour-blind safe palette, less its yellow; the untrained model is grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("s", "D", "^", "v", "P", "X", "*")
_UNTRAINED = "#6e6e6e"
_LINE = "#555555"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "star",
    "legend.frameon": False,
}
# Of the project's own scorers: the axis of a score, and what it is, in a sentence.
SCORE_AXES = {
    "geneval": "share of correct images, mean over tags",
    "ocr": "1 − edits per letter",
    "pickscore": "PickScore",
}
SCORE_NOTES = {
    "geneval": "share of correct images, unweighted mean over the tags",
    "ocr": "1 - edit distance / letters of the target",
    "pickscore": "raw PickScore",
}


def score_axis(scorer: str) -> str:
    """The axis of a scorer's scores."""
    return SCORE_AXES.get(scorer, f"score of {scorer}")


def look(config: Config, method: str) -> dict:
    """Colour and marker of a method, the same in every figure; the first 49 methods differ."""
    if method == "base":
        return {"color": _UNTRAINED, "marker": "o"}
    i = list(config.methods).index(method)
    return {"color": COLORS[i % len(COLORS)], "marker": _MARKERS[(i + i // len(COLORS)) % len(_MARKERS)]}


def seeds(config: Config) -> str:
    """How many seeds, in words."""
    return f"{len(config.seeds)} seed{'s' * (len(config.seeds) > 1)}"


def reach(rows: pd.DataFrame, columns: Sequence[str] = ("mean", "low", "high")) -> np.ndarray:
    """Lengths of the bars [2, rows] below and above every mean; 0 where there is no interval."""
    mean, low, high = (rows[column].to_numpy(dtype=float) for column in columns)
    return np.nan_to_num(np.abs(np.stack([mean - low, high - mean])))


def dot_across(axes: Axes, y: float, estimate: Sequence[float], **style: object) -> None:
    """A dot at height `y` with a horizontal bar; `estimate` is (mean, low, high), of which the limits may be nan."""
    mean, low, high = estimate
    bar = np.nan_to_num(np.abs([[mean - low], [high - mean]]))
    axes.errorbar(mean, y, xerr=bar, **{"markersize": 6, "capsize": 3} | style)


def say(axes: Axes, text: str, x: float, y: float) -> None:
    """A small text above a dot, on white: it may lie across the line of zero."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, bbox=ground)


def rows_axis(axes: Axes, labels: Sequence[str]) -> None:
    """The vertical axis of rows that are read from the top down."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.45, -0.7)
    axes.grid(axis="y", visible=False)


def reference_line(axes: Axes, at: float, horizontal: bool = False) -> None:
    """The line of no difference."""
    line = axes.axhline if horizontal else axes.axvline
    line(at, color=_LINE, linewidth=1.2, zorder=1)


def caption(figure: Figure, text: str) -> None:
    """Write a caption below a figure."""
    width = int(figure.get_figwidth() * 15.5)
    figure.text(0.01, -0.01, textwrap.fill(text, width), va="top", fontsize=8, color="#444444")


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above a figure, with every label of its panels once, in as many rows as it needs."""
    handle_of = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handle_of.setdefault(label, handle)
    widest = max(map(len, handle_of)) * 0.075 + 0.5  # inches
    columns = min(len(handle_of), max(1, int(figure.get_figwidth() / widest)))
    figure.legend(handle_of.values(), handle_of.keys(), loc="outside upper left", ncols=columns, borderaxespad=0.2)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, whole or not at all, and close it."""
    with whole(path) as draft:
        figure.savefig(draft, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
