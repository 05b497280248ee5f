"""docs/evidence.md from the tables: words follow the numbers by rules, in the template evidence.md.j2 beside this file."""

from importlib.resources import files

import jinja2
import numpy as np
import pandas as pd

from star.analysis.text import digits, probability
from star.config import Config, methods_of, run_settings
from star.evidence.estimates import RESAMPLES
from star.evidence.questions import MAIN, QUESTIONS, attribute_task, compared

Pair = tuple[str, str]
_SIGNIFICANT = 0.05


class Said:
    """What the table of comparisons says of pairs of methods, in words."""

    def __init__(self, config: Config, table: pd.DataFrame, learning: pd.DataFrame) -> None:
        self.config, self.table = config, table
        self.places = {task: digits(rows["mean"]) for task, rows in learning.groupby("task")}

    def rows(self, method: str, reference: str) -> pd.DataFrame:
        """A row a task on which both methods were trained."""
        return self.table[(self.table["method"] == method) & (self.table["reference"] == reference)]

    def tasks(self, method: str, reference: str, sign: int) -> list[str]:
        """The tasks where the difference is above (1) or below (-1) zero, or not told apart from it (0), by the bootstrap.

        Where it is exactly zero it is none of these.
        """
        rows = self.rows(method, reference)
        rows = rows[~_identical(rows)]
        found = np.where(rows["low"] > 0, 1, np.where(rows["high"] < 0, -1, 0))
        return rows.loc[found == sign, "task"].tolist()

    def pair(self, method: str, reference: str) -> str:
        """One sentence on a pair over all its tasks; empty where no task has both."""
        rows = self.rows(method, reference)
        same = rows.loc[_identical(rows), "task"].tolist()
        parts = [f"exactly zero, in every resample, on {listed(same)}"] if same else []
        for sign, words in ((1, "above zero on"), (-1, "below zero on"), (0, "not told apart from zero on")):
            tasks = self.tasks(method, reference, sign)
            if tasks:
                parts.append(f"{words} {listed([self._task(method, reference, task) for task in tasks])}")
        return f"`{method}` − `{reference}` is {'; '.join(parts)}." if parts else ""

    def _task(self, method: str, reference: str, task: str) -> str:
        row = self.rows(method, reference).set_index("task").loc[task]
        text = f"{task} ({interval(row, self.places[task], '+')}"
        if np.isfinite(row["p_holm"]):
            excluded = row["low"] > 0 or row["high"] < 0
            text += f", corrected p {probability(row['p_holm'])}"
            if excluded != (row["p_holm"] < _SIGNIFICANT):
                text += ", so not after correction" if excluded else ", so told apart by the mixed model alone"
        return text + ")"

    def markdown(self, pairs: tuple[Pair, ...]) -> str:
        """A table of pairs: a row a task and pair."""
        lines = []
        for task in self.config.tasks:
            for _, row in compared(self.table, task, pairs).iterrows():
                places = self.places[task]
                lines.append(
                    {
                        "task": task,
                        "difference": f"{row['method']} − {row['reference']}",
                        "final score": interval(row, places, "+"),
                        "mixed model": interval(row, places, "+", ("mixed_mean", "mixed_low", "mixed_high")),
                        "p": probability(row["p"]).removeprefix("= "),
                        "corrected p": probability(row["p_holm"]).removeprefix("= "),
                        "mean height of the learning curve": interval(row, places, "+", ("area", "area_low", "area_high")),
                        "n": f"{row['images']} ({row['prompts']} × {row['seeds']})",
                    }
                )
        return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _identical(rows: pd.DataFrame) -> pd.Series:
    return (rows[["mean", "low", "high"]] == 0).all(axis=1)


def listed(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"; "none" for nothing."""
    if len(items) < 2:
        return items[0] if items else "none"
    return f"{', '.join(items[:-1])} and {items[-1]}"


def interval(row: pd.Series, places: int, sign: str = "", columns: tuple[str, ...] = ("mean", "low", "high")) -> str:
    """`mean [low, high]`; "-" without a value."""
    mean, low, high = (row[c] for c in columns)
    if np.isnan(mean):
        return "-"
    if np.isnan(low):
        return f"{mean:{sign}.{places}f} [no interval]"
    return f"{mean:{sign}.{places}f} [{low:{sign}.{places}f}, {high:{sign}.{places}f}]"


def _epochs(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "not reached"


def _thresholds(table: pd.DataFrame, said: Said) -> str:
    lines = [
        {
            "task": r.task,
            "method": r.method,
            "score to reach": f"{r.threshold:.{said.places[r.task]}f}",
            "epochs": f"{_epochs(r.epochs)} [{_epochs(r.low)}, {_epochs(r.high)}]",
            "resamples that reach it": f"{100 * r.reached:.0f} %",
        }
        for r in table.itertuples()
    ]
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _wide(table: pd.DataFrame, index: list[str], column: str, places: int, sign: str = "") -> str:
    cells = table.assign(cell=[interval(row, places, sign) for _, row in table.iterrows()])
    order = cells[column].drop_duplicates()
    wide = cells.pivot(index=index, columns=column, values="cell").reindex(columns=order)
    wide = wide.loc[list(cells[index].drop_duplicates().itertuples(index=False, name=None))].fillna("-").reset_index()
    return wide.to_markdown(index=False, disable_numparse=True)


def _pick(table: pd.DataFrame, **keys: object) -> pd.DataFrame:
    """The rows of a table whose columns have the values of `keys`."""
    return table[(table[list(keys)] == pd.Series(keys)).all(axis=1)]


def _row(table: pd.DataFrame, **keys: object) -> str:
    """The interval in the first of these rows; signed where it is a contrast."""
    return interval(_pick(table, **keys).iloc[0], 3, "+" if keys.get("contrast") else "")


def _machines(runs: pd.DataFrame) -> list[dict]:
    """Machines with their number of trainings and hours."""
    known = runs.assign(gpu=runs["gpu"].fillna("none"))
    columns = ["cpu", "cores", "memory_gib", "gpu", "torch"]
    return (
        known.groupby(columns, sort=False)
        .agg(trainings=("seconds", "size"), hours=("seconds", lambda s: s.sum() / 3600))
        .reset_index()
        .to_dict("records")
    )


def _trained(asked: Config, runs: pd.DataFrame) -> dict[str, tuple[list[str], list[str]]]:
    """By task: methods with the number of their seeds, and what the configuration asks for beyond that."""
    found = {}
    for task in asked.tasks:
        seeds = runs[runs["task"] == task].groupby("method")["seed"].nunique()
        names = {name: int(seeds.get(name, 0)) for name in methods_of(asked, task)}
        there = [f"{name} ({n})" for name, n in names.items() if n]
        found[task] = there, [f"{name} ({len(asked.seeds) - n})" for name, n in names.items() if n < len(asked.seeds)]
    return found


def _rates(config: Config, task: str) -> str:
    """The learning rates on a task: the most common one first, the others with the methods that have them."""
    methods: dict[float, list[str]] = {}
    for name in methods_of(config, task):
        methods.setdefault(run_settings(config, task, name).optimizer.learning_rate, []).append(name)
    common, *others = sorted(methods, key=lambda rate: -len(methods[rate]))
    return "; ".join([f"{common:g}", *(f"{rate:g} ({', '.join(methods[rate])})" for rate in others)])


def _ratio(diagnostics: pd.DataFrame, task: str, quantity: str) -> str:
    """Mean of a diagnostic under `star` over that under `flow_grpo`."""
    star, scalar = (
        _pick(diagnostics, task=task, method=method, quantity=quantity)["mean"].item() for method in ("star", "flow_grpo")
    )
    return f"{star / scalar:.2f}"


def text(asked: Config, config: Config, tables: dict[str, pd.DataFrame], figures: list[str]) -> str:
    """The Markdown of docs/evidence.md; figures are evidence/<name>.svg beside it.

    `asked` is the whole configuration, `config` what of it was measured.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("star.evidence") / name).read_text(encoding="utf-8")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    said = Said(config, tables["evidence"], tables["evidence_learning"])

    return environment.get_template("evidence.md.j2").render(
        config=config,
        methods_of=methods_of,
        settings=lambda task, method: run_settings(config, task, method),
        main_pairs=MAIN,
        questions={q.letter: q for q in QUESTIONS},
        answered=[q.letter for q in QUESTIONS if q.name in figures],
        rates=lambda task: _rates(config, task),
        ratio=lambda task, quantity: _ratio(tables["evidence_diagnostics"], task, quantity),
        trained=_trained(asked, tables["evidence_runs"]),
        asked=asked,
        resamples=RESAMPLES,
        said=said,
        tables=tables,
        attribute_task=attribute_task(config),
        machines=_machines(tables["evidence_runs"]),
        thresholds=_thresholds(tables["evidence_thresholds"], said),
        wide=_wide,
        row=_row,
        pick=_pick,
        listed=listed,
        interval=interval,
    )
