"""What a table of final scores shows, in words: a sentence a task, nothing beyond what the intervals say. Source: ours."""

import pandas as pd

from star.analysis.text import digits
from star.config import Config, main_scorer


def sentences(config: Config, main: pd.DataFrame) -> list[str]:
    """One sentence a task, and one on the seeds, of the table `main` of star/analysis/tables.py."""
    said = [_of_task(main_scorer(config, task), task, main[main["task"] == task]) for task in config.tasks]
    return [*said, _of_seeds(len(config.seeds))]


def _of_task(scorer: str, task: str, rows: pd.DataFrame) -> str:
    scores = rows[rows["metric"] == scorer].set_index("method")
    places = digits(scores["mean"])
    base = f"{scores.loc['base', 'mean']:.{places}f}"
    gains = rows[rows["metric"] == f"{scorer}-minus-base"].set_index("method")
    parts = [
        _listed(gains[gains["ci_low"] > 0], scores, places, f"above the untrained model's {base}"),
        _listed(gains[gains["ci_high"] < 0], scores, places, f"below the untrained model's {base}"),
        _listed(gains[(gains["ci_low"] <= 0) & (gains["ci_high"] >= 0)], scores, places, f"not told apart from its {base}"),
    ]
    return f"{task}: {'; '.join(part for part in [*parts, *_star(scorer, rows)] if part)}."


def _listed(gains: pd.DataFrame, scores: pd.DataFrame, places: int, what: str) -> str:
    named = [f"{method} ({scores.loc[method, 'mean']:.{places}f})" for method in gains.index]
    if not named:
        return ""
    return f"{_and(named)} {'is' if len(named) == 1 else 'are'} {what}"


def _star(scorer: str, rows: pd.DataFrame) -> list[str]:
    """How `star` stands to the methods that it is compared with, the untrained model left out."""
    of_star = rows[(rows["method"] == "star") & rows["metric"].str.startswith(f"{scorer}-minus-")]
    verdicts: dict[str, list[str]] = {}
    for metric, low, high in of_star[["metric", "ci_low", "ci_high"]].itertuples(index=False, name=None):
        other = metric.removeprefix(f"{scorer}-minus-")
        if other != "base":
            verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
            verdicts.setdefault(verdict, []).append(other)
    return [f"star is {verdict} {_and(others)}" for verdict, others in verdicts.items()]


def _of_seeds(count: int) -> str:
    if count == 1:
        return "This is one training seed: it compares these adapters, not the methods."
    return f"These are {count} training seeds; the intervals are over prompts alone, and the evidence has those over seeds."


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
