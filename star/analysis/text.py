"""The five tables as files: CSV for machines, Markdown and LaTeX (both through pandas) for readers."""

from pathlib import Path

import pandas as pd

from star.analysis.statistics import RESAMPLES
from star.config import SCORERS, Config
from star.scoring.scorer import GUARDS

_INTERVAL = (
    f"In brackets: 95 % interval from {RESAMPLES} bootstrap resamples of the test prompts (all images of a prompt "
    "together). "
    "It says what other prompts of the same kind would give, not what another training seed would. n counts images."
)
_SCORE = (
    "Scorers: geneval is the share of correct images, unweighted mean over the tags; ocr 1 - edit distance / letters of the "
    "target; pickscore the raw PickScore."
)
_FEW = "For a tag of five prompts the interval is too narrow: it covers 86 to 90 % in simulation."
_PAIRED = "Differences are paired by seed, prompt and initial noise; * marks an interval that excludes zero."
_GUARDS = (
    "Collapse guards, means over images, say whether pictures change in ways that the score does not see; compare down a "
    "column. diversity: mean distance between the pictures of a prompt. edge_density: share of pixels on an edge. "
    "color_entropy: bits. geneval, ocr, pickscore: the scorer of another task, where the prompts allow it. "
    "- is not defined: one picture a prompt, or prompts without objects or quoted text."
)
_COST = {
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


def save(folder: Path, config: Config, tables: dict[str, pd.DataFrame], prompts: dict[str, int]) -> None:
    """Write <name>.{csv,md,tex} for the tables `main`, `categories`, `cost`, `ablation`, `guards` of star/analysis/tables.py.

    `prompts` is the number of test prompts of each task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainings = f"{config.experiment}, seeds {', '.join(map(str, config.seeds))}, {config.evaluation.split} prompts"
    scores, differences = _main(tables["main"], prompts)
    last = tables["guards"][lambda t: t["step"] == t.groupby(["task", "method"])["step"].transform("max")]
    _save(
        folder / "main",
        f"Scores of the final checkpoints ({trainings})",
        tables["main"],
        {"Scores": scores, "Paired differences": differences, "Collapse guards": _guards(last)},
        [_SCORE, _INTERVAL, _PAIRED, _GUARDS],
    )
    _save(
        folder / "categories",
        f"Scores by tag ({trainings})",
        tables["categories"],
        {task: _tags(rows) for task, rows in tables["categories"].groupby("task", sort=False)},
        [_INTERVAL, _FEW, "Overall is the unweighted mean of the tags."],
    )
    _save(
        folder / "cost",
        f"Cost of training ({trainings})",
        tables["cost"],
        {"Cost": _cost(tables["cost"])},
        [
            "Seconds of an epoch are rollout + maps + reward + update (wall clock; reward is the time that scoring "
            "was waited for); "
            "s/epoch and its parts are medians over epochs, s in all is one training. Memory is the peak of the "
            "process, in 10^6 bytes."
        ],
    )
    _save(
        folder / "ablation",
        f"Methods side by side ({trainings})",
        tables["ablation"],
        {task: _ablation(rows) for task, rows in tables["ablation"].groupby("task", sort=False)},
        [
            _SCORE,
            _INTERVAL,
            _PAIRED,
            "Training reward is the mean over the last fifth of the epochs, on training prompts.",
        ],
    )
    _save(
        folder / "guards",
        f"Collapse guards of every scored checkpoint ({trainings})",
        tables["guards"],
        {task: _guards(rows, "step") for task, rows in tables["guards"].groupby("task", sort=False)},
        [_GUARDS],
    )


def _save(stem: Path, title: str, long: pd.DataFrame, wide: dict[str, pd.DataFrame], notes: list[str]) -> None:
    write_text(stem.with_suffix(".csv"), long.to_csv(index=False, float_format="%.8g"))
    markdown, latex = [f"# {title}"], ["% needs \\usepackage{booktabs}"]
    for number, (heading, table) in enumerate(wide.items(), start=1):
        markdown += [f"## {heading}", table.to_markdown(index=False, disable_numparse=True)]
        caption = _escape(f"{title}. {heading}. {' '.join(notes)}")
        latex.append(table.to_latex(index=False, escape=True, caption=caption, label=f"tab:{stem.name}-{number}"))
    write_text(stem.with_suffix(".md"), "\n\n".join([*markdown, *notes]) + "\n")
    write_text(stem.with_suffix(".tex"), "\n\n".join(latex))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _escape(text: str) -> str:
    for character in "%_#&":
        text = text.replace(character, f"\\{character}")
    return text.replace("^", r"\textasciicircum{}")


def digits(values: pd.Series) -> int:
    """Decimal places for scores of this size."""
    return 3 if values.abs().max() < 10 else 2


def probability(p: float) -> str:
    """A p-value as `= 0.03` or `< 0.001`; "-" for none."""
    return "-" if pd.isna(p) else "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.995 else "= 1"


def interval_cell(mean: float, low: float, high: float, places: int, sign: str = "") -> str:
    """`mean [low, high]`; with sign="+" a difference, starred where its interval excludes zero; "-" for no value."""
    if pd.isna(mean):
        return "-"
    if pd.isna(low):
        return f"{mean:{sign}.{places}f} [no interval]"
    star = " *" if sign and (low > 0 or high < 0) else ""
    return f"{mean:{sign}.{places}f} [{low:{sign}.{places}f}, {high:{sign}.{places}f}]{star}"


def _cells(
    rows: pd.DataFrame, places: int, sign: str = "", columns: tuple[str, ...] = ("mean", "ci_low", "ci_high")
) -> list[str]:
    return [interval_cell(*limits, places, sign) for limits in rows[list(columns)].itertuples(index=False, name=None)]


def _main(main: pd.DataFrame, prompts: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    scores, differences = {}, {}
    for task, rows in main.groupby("task", sort=False):
        score, paired = rows[rows["metric"] == task], rows[rows["metric"] != task]
        # The baseline minus a control would say again what the control minus the baseline says.
        paired = paired[(paired["method"] != "flow_grpo") | (paired["metric"] == f"{task}-minus-base")]
        places = digits(score["mean"])
        heading = f"{task} (n = {score['n'].iloc[0]}, {prompts[task]} prompts)"
        labels = paired["method"] + " - " + paired["metric"].str.removeprefix(f"{task}-minus-")
        scores[heading] = pd.Series(_cells(score, places), index=score["method"])
        differences[heading] = pd.Series(_cells(paired, places, "+"), index=labels)
    return _side_by_side(scores, "method"), _side_by_side(differences, "difference")


def _side_by_side(columns: dict[str, pd.Series], name: str) -> pd.DataFrame:
    """One column a task; rows in the order in which they first come, "-" where a task does not have one."""
    rows = list(dict.fromkeys(label for column in columns.values() for label in column.index))
    return pd.DataFrame(columns).reindex(rows).fillna("-").rename_axis(name).reset_index()


def _guards(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Wide: one row a task and method (and `more`), one column a guard."""
    index = ["task", "method", *more]
    order = [guard for guard in (*GUARDS, *SCORERS) if guard in set(rows["guard"])]
    cells = rows.assign(cell=[f"{v:.{2 if v >= 10 else 3}f}" for v in rows["mean"]])
    wide = cells.pivot(index=index, columns="guard", values="cell").reindex(columns=order)
    return wide.loc[pd.MultiIndex.from_frame(rows[index].drop_duplicates())].fillna("-").reset_index().astype(str)


def _tags(rows: pd.DataFrame) -> pd.DataFrame:
    counts = rows.drop_duplicates("tag").set_index("tag")["n"]
    cells = rows.assign(cell=_cells(rows, 3)).pivot(index="method", columns="tag", values="cell")
    cells = cells.loc[rows["method"].unique(), counts.index]
    cells.columns = [f"{tag} (n = {n})" for tag, n in counts.items()]
    return cells.reset_index()


def _cost(cost: pd.DataFrame) -> pd.DataFrame:
    out = cost[["task", "method", "epochs"]].astype(str)
    for key, (name, places) in _COST.items():
        out[name] = ["-" if pd.isna(v) else f"{v:.{places}f}" for v in cost[key]]
    return out


def _ablation(rows: pd.DataFrame) -> pd.DataFrame:
    places = digits(rows["mean"])
    return pd.DataFrame(
        {
            "method": rows["method"],
            "final score": _cells(rows, places),
            "minus flow_grpo": _cells(rows, places, "+", ("diff", "diff_low", "diff_high")),
            "training reward at the end": [f"{v:.3f}" for v in rows["reward_last_fifth"]],
        }
    )
