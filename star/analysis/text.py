"""Tables as text: numbers with their intervals, and the five tables of an experiment as CSV, Markdown and LaTeX files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from star.analysis.results import column_name, guard_order, reported
from star.analysis.statistics import PROMPT_RESAMPLES
from star.analysis.style import SCORE_NOTES
from star.config import Config
from star.files import write_text

_INTERVAL = (
    f"In brackets: 95 % interval from {PROMPT_RESAMPLES} bootstrap resamples of the test prompts (all images of a prompt "
    "together). "
    "It says what other prompts of the same kind would give, not what another training seed would. n counts images."
)
_SCORE = " ".join(f"{scorer}: {note}." for scorer, note in SCORE_NOTES.items())
_FEW = "For a tag of five prompts the interval is too narrow: it covers 86 to 90 % in simulation."
_OVERALL = "Overall is the unweighted mean of the tags."
_PAIRED = "Differences are paired by seed, prompt and initial noise; * marks an interval that excludes zero."
_GUARDS = (
    "Collapse guards, means over images, say whether pictures change in ways that the score does not see; compare down a "
    "column. diversity: mean distance between the pictures of a prompt. edge_density: share of pixels on an edge. "
    f"color_entropy: bits. {', '.join(SCORE_NOTES)}: the scorer of another task, where the prompts allow it. "
    "- is not defined: one picture a prompt, or prompts without objects or quoted text."
)
_COST = (
    "Seconds of an epoch are rollout + maps + reward + update (wall clock; reward is the time that scoring was waited for); "
    "s/epoch and its parts are medians over epochs, s in all is one training. Memory is the peak of the "
    "process, in 10^6 bytes."
)
_REWARD = "Training reward is the mean over the last fifth of the epochs, on training prompts."
_COST_COLUMNS = {
    "seconds_epoch": ("s/epoch", 2),
    "seconds_total": ("s in all", 0),
    "seconds_rollout": ("rollout s", 2),
    "seconds_maps": ("maps s", 3),
    "seconds_reward": ("reward s", 2),
    "seconds_update": ("update s", 2),
    "map_overhead_percent": ("maps, % of time", 2),
    "epoch_ratio": ("s/epoch over flow_grpo's", 3),
    "images_per_second": ("images/s", 2),
    "peak_memory_mb": ("peak memory MB", 0),
}
Limits = tuple[str, str, str]  # columns of an estimate and its interval
_CI: Limits = ("mean", "ci_low", "ci_high")


def digits(values: pd.Series) -> int:
    """Decimal places for scores of this size."""
    return 3 if values.abs().max() < 10 else 2


def probability(p: float) -> str:
    """A p-value as `= 0.03` or `< 0.001`; "-" for none."""
    return "-" if pd.isna(p) else "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.995 else "= 1"


def interval(mean: float, low: float, high: float, places: int, sign: str = "") -> str:
    """`mean [low, high]`, with sign="+" signed; "-" for no value."""
    if pd.isna(mean):
        return "-"
    if pd.isna(low):
        return f"{mean:{sign}.{places}f} [no interval]"
    return f"{mean:{sign}.{places}f} [{low:{sign}.{places}f}, {high:{sign}.{places}f}]"


def intervals(rows: pd.DataFrame, places: int, sign: str = "", columns: Limits = ("mean", "low", "high")) -> list[str]:
    """`interval` of every row."""
    return [interval(*limits, places, sign) for limits in rows[list(columns)].itertuples(index=False, name=None)]


def _starred(rows: pd.DataFrame, places: int, columns: Limits = _CI) -> list[str]:
    """Differences, with a star where the interval excludes zero."""
    low, high = rows[columns[1]], rows[columns[2]]
    stars = [" *" if excludes else "" for excludes in (low > 0) | (high < 0)]
    return [cell + star for cell, star in zip(intervals(rows, places, "+", columns), stars, strict=True)]


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown."""
    return table.to_markdown(index=False, disable_numparse=True)


def wide(rows: pd.DataFrame, index: Sequence[str], column: str, cells: Sequence[str]) -> pd.DataFrame:
    """A row for every value of `index`, a column for every value of `column`, both in the order in which they first come."""
    index = list(index)
    order = rows[column].drop_duplicates()
    table = rows.assign(cell=cells).pivot(index=index, columns=column, values="cell").reindex(columns=order)
    return rows[index].drop_duplicates().merge(table.fillna("-").reset_index(), on=index)


def save(
    folder: Path, config: Config, tables: dict[str, pd.DataFrame], *, prompts: dict[str, int], words: Sequence[str]
) -> None:
    """Write <name>.{csv,md,tex} for the tables `main`, `categories`, `cost`, `ablation`, `guards` of star/analysis/tables.py.

    `prompts` is the number of test prompts of each task, `words` say what the main table shows.
    """
    trainings = f"{config.experiment}, seeds {', '.join(map(str, config.seeds))}, {config.evaluation.split} prompts"
    guards = tables["guards"]
    last = guards[guards["epoch"] == guards.groupby(["task", "method"])["epoch"].transform("max")]
    scores, differences = _main(config, tables["main"], prompts)
    readable = {
        "main": {"Scores": scores, "Paired differences": differences, "Collapse guards": _guards(last)},
        "categories": {task: _tags(rows) for task, rows in tables["categories"].groupby("task", sort=False)},
        "cost": {"Cost": _cost(tables["cost"])},
        "ablation": {task: _ablation(rows) for task, rows in tables["ablation"].groupby("task", sort=False)},
        "guards": {task: _guards(rows, "epoch") for task, rows in guards.groupby("task", sort=False)},
    }
    titles = {
        "main": "Scores of the final checkpoints",
        "categories": "Scores by tag",
        "cost": "Cost of training",
        "ablation": "Methods side by side",
        "guards": "Collapse guards of every scored checkpoint",
    }
    notes = {
        "main": [_SCORE, _INTERVAL, _PAIRED, _GUARDS],
        "categories": [_INTERVAL, _FEW, _OVERALL],
        "cost": [_COST],
        "ablation": [_SCORE, _INTERVAL, _PAIRED, _REWARD],
        "guards": [_GUARDS],
    }
    for name, sections in readable.items():
        save_csv(folder / f"{name}.csv", tables[name])
        lead = [" ".join(words)] if name == "main" else []
        _save_readable(folder / name, f"{titles[name]} ({trainings})", sections, lead=lead, notes=notes[name])


def save_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a long table, numbers with eight digits."""
    write_text(path, table.to_csv(index=False, float_format="%.8g"))


def _save_readable(stem: Path, title: str, sections: dict[str, pd.DataFrame], *, lead: list[str], notes: list[str]) -> None:
    parts, latex = [*lead, f"# {title}"], ["% needs \\usepackage{booktabs}"]
    for number, (heading, table) in enumerate(sections.items(), start=1):
        parts += [f"## {heading}", markdown(table)]
        caption = _escape(f"{title}. {heading}. {' '.join(notes)}")
        latex.append(table.to_latex(index=False, escape=True, caption=caption, label=f"tab:{stem.name}-{number}"))
    write_text(stem.with_suffix(".md"), "\n\n".join([*parts, *notes]) + "\n")
    write_text(stem.with_suffix(".tex"), "\n\n".join(latex))


def _escape(text: str) -> str:
    for character in "%_#&":
        text = text.replace(character, f"\\{character}")
    return text.replace("^", r"\textasciicircum{}")


def _main(config: Config, main: pd.DataFrame, prompts: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and differences, a column a task and reported scorer."""
    scores, differences = {}, {}
    for task in config.tasks:
        of_task = main[main["task"] == task]
        for scorer in reported(config, task):
            score = of_task[of_task["metric"] == scorer]
            prefix = f"{scorer}-minus-"
            paired = of_task[of_task["metric"].str.startswith(prefix)]
            paired = paired[~_said_again(paired, prefix)]
            places = digits(score["mean"])
            heading = f"{column_name(config, task, scorer)} (n = {score['n'].iloc[0]}, {prompts[task]} prompts)"
            labels = paired["method"] + " - " + paired["metric"].str.removeprefix(prefix)
            scores[heading] = pd.Series(intervals(score, places, columns=_CI), index=score["method"])
            differences[heading] = pd.Series(_starred(paired, places), index=labels)
    return _side_by_side(scores, "method"), _side_by_side(differences, "difference")


def _said_again(paired: pd.DataFrame, prefix: str) -> pd.Series:
    """The rows `a - b` of which there is a row `b - a` before; of a scalar objective and a control the latter stays."""
    others = paired["metric"].str.removeprefix(prefix)
    pairs = list(zip(paired["method"], others, strict=True))
    again = [
        (other, method) in pairs and (other == "random" or (method != "random" and pairs.index((other, method)) < place))
        for place, (method, other) in enumerate(pairs)
    ]
    return pd.Series(again, index=paired.index)


def _side_by_side(columns: dict[str, pd.Series], name: str) -> pd.DataFrame:
    """Rows in the order in which they first come, "-" where a column does not have one."""
    rows = list(dict.fromkeys(label for column in columns.values() for label in column.index))
    return pd.DataFrame(columns).reindex(rows).fillna("-").rename_axis(name).reset_index()


def _guards(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """One row a task and method (and `more`), one column a guard."""
    index = ["task", "method", *more]
    cells = [f"{value:.{2 if value >= 10 else 3}f}" for value in rows["mean"]]
    table = wide(rows, index, "guard", cells)
    return table[[*index, *guard_order(rows["guard"])]].astype(str)


def _tags(rows: pd.DataFrame) -> pd.DataFrame:
    counts = rows.drop_duplicates("tag").set_index("tag")["n"]
    table = wide(rows, ["method"], "tag", intervals(rows, 3, columns=_CI))
    return table.rename(columns={tag: f"{tag} (n = {n})" for tag, n in counts.items()})


def _cost(cost: pd.DataFrame) -> pd.DataFrame:
    table = cost[["task", "method", "epochs"]].astype(str)
    for key, (name, places) in _COST_COLUMNS.items():
        table[name] = ["-" if pd.isna(value) else f"{value:.{places}f}" for value in cost[key]]
    return table


def _ablation(rows: pd.DataFrame) -> pd.DataFrame:
    places = digits(rows["mean"])
    return pd.DataFrame(
        {
            "method": rows["method"],
            "final score": intervals(rows, places, columns=_CI),
            "minus flow_grpo": _starred(rows, places, ("diff", "diff_low", "diff_high")),
            "training reward at the end": [f"{reward:.3f}" for reward in rows["reward_last_fifth"]],
        }
    )
