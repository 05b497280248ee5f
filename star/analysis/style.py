"""How every figure looks: colours and markers of methods, captions, legends, atomic files."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star.config import Config, main_scorer

# Okabe and Ito's colour-blind safe palette, less its yellow; the untrained model is grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("s", "D", "^", "v", "P", "X", "*")
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
SCORE_AXES = {
    "geneval": "share of correct images, mean over tags",
    "ocr": "1 − edits per letter",
    "pickscore": "PickScore",
}


def score_axis(config: Config, task: str) -> str:
    """What the axis of a task's scores is called; a scorer of one's own by its name."""
    scorer = main_scorer(config, task)
    return SCORE_AXES.get(scorer, scorer)


def look(config: Config, method: str) -> dict:
    """Colour and marker of a method, the same in every figure; the first 49 methods differ."""
    if method == "base":
        return {"color": "#6e6e6e", "marker": "o"}
    i = list(config.methods).index(method)
    return {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)]}


def seeds(config: Config) -> str:
    """How many seeds, in words."""
    return f"{len(config.seeds)} seed{'s' * (len(config.seeds) > 1)}"


def caption(figure: Figure, text: str) -> None:
    """Write a caption below a figure."""
    width = int(figure.get_figwidth() * 15.5)
    figure.text(0.01, -0.01, textwrap.fill(text, width), va="top", fontsize=8, color="#444444")


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above a figure, with every label of its panels once, in as many rows as it needs."""
    labelled = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    widest = max(map(len, labelled)) * 0.075 + 0.5  # inches
    columns = min(len(labelled), max(1, int(figure.get_figwidth() / widest)))
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper left", ncols=columns, borderaxespad=0.2)


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as `stem`.svg, atomically, and close it."""
    temporary = stem.with_name(f".{stem.name}.svg.tmp")
    figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
    temporary.replace(stem.with_suffix(".svg"))
    plt.close(figure)
