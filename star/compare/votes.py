"""Stage: votes. What people preferred, how far they agree, and what the scorers said of the same pictures.

A vote is worth 1 where A was preferred, 0 where B was, 1/2 for no difference. The win rate is its mean over prompts; votes on
one prompt's pictures share the prompt's difficulty and are kept together. Its interval is a bootstrap over prompts. Wilson's
interval (1927) of a share among as many prompts stands beside it as a check, which holds where all votes are alike too.
Agreement: the share of equal votes among two people's votes on a pair, and Krippendorff's alpha (nominal; 2011), which is 1
for full agreement and 0 for that of chance.
"""

from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from statsmodels.stats.proportion import proportion_confint

from star.analysis.results import read_scores
from star.analysis.statistics import LEVEL, prompt_bootstrap
from star.errors import InputError
from star.files import write_text

_FEW = 10  # prompts, below which the bootstrap's interval is too narrow


class Vote(BaseModel):
    """A pair in a file of votes; `vote` is None where the person has not come to it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    prompt_id: str
    picture: int
    tag: str
    prompt: str
    a_side: Literal["left", "right"]
    vote: Literal["left", "right", "tie"] | None
    milliseconds: int | None


class Ballot(BaseModel):
    """A file of votes: one person on one comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    format: Literal["star-votes-1"]
    comparison: str
    seed: int
    question: str
    a: str
    b: str
    judge: str
    exported: str
    votes: list[Vote]


def report(files: list[Path], scores: list[Path] | None, out: Path | None) -> str:
    """Markdown of what the votes of `files` say; beside the scores of A and B, where given. Written into `out` with its tables.

    Raises InputError when a file is not one of votes, when files are of different comparisons or of one person, when there is
    no vote, or when the scores are not of these pictures.
    """
    ballots = read(files)
    votes = frame(ballots)
    scored = None if scores is None else read_both_scores(scores, ballots[0].votes)
    tables = {"votes": groups(votes, scored), "people": people(ballots, votes)}
    text = _markdown(ballots, votes, tables, scored)
    if out is not None:
        for name, table in tables.items():
            write_text(out / f"{name}.csv", table.to_csv(index=False))
        write_text(out / "votes.md", text)
    return text


def read(files: list[Path]) -> list[Ballot]:
    """The files of votes of one comparison. Raises InputError as `report`."""
    ballots: dict[str, Ballot] = {}
    paths: dict[str, Path] = {}
    for path in files:
        ballot = _ballot(path)
        if ballot.judge in ballots:
            raise InputError(f"{paths[ballot.judge]} and {path}: votes of the same person; give the one saved last")
        first_path, first = (path, ballot) if not ballots else next((paths[judge], ballots[judge]) for judge in ballots)
        if ballot.comparison != first.comparison:
            raise InputError(
                f"{first_path} and {path}: votes on different comparisons (`{first.comparison}`, `{ballot.comparison}`); "
                "count each comparison by itself"
            )
        if _asked(ballot) != _asked(first):
            raise InputError(f"{first_path} and {path}: one comparison with different pairs; a file was edited, save it again")
        ballots[ballot.judge], paths[ballot.judge] = ballot, path
    if not any(vote.vote for ballot in ballots.values() for vote in ballot.votes):
        raise InputError(f"{files[0]}: no votes in {'it' if len(files) == 1 else 'any file'}; judge some pairs first")
    return list(ballots.values())


def _ballot(path: Path) -> Ballot:
    remedy = "save the votes again on the page of `star compare`"
    try:
        return Ballot.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of votes; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{path}: {key}: {first['msg']}; {remedy}") from None


def _asked(ballot: Ballot) -> tuple:
    pairs = tuple((v.prompt_id, v.picture, v.tag, v.prompt, v.a_side) for v in ballot.votes)
    return ballot.question, ballot.seed, ballot.a, ballot.b, pairs


def frame(ballots: list[Ballot]) -> pd.DataFrame:
    """One row a vote: judge, prompt_id, sample, prompt, tag, preferred (A, B, tie), value (1, 0, 1/2), side, milliseconds."""
    rows = []
    for ballot in ballots:
        for vote in ballot.votes:
            if vote.vote is None:
                continue
            preferred = "tie" if vote.vote == "tie" else "A" if vote.vote == vote.a_side else "B"
            rows.append(
                {
                    "judge": ballot.judge,
                    "prompt_id": vote.prompt_id,
                    "sample": vote.picture,
                    "prompt": vote.prompt,
                    "tag": vote.tag,
                    "preferred": preferred,
                    "value": {"A": 1.0, "B": 0.0, "tie": 0.5}[preferred],
                    "side": vote.vote,
                    "milliseconds": vote.milliseconds,
                }
            )
    return pd.DataFrame(rows)


def win_rate(votes: pd.DataFrame) -> dict[str, float]:
    """{prompts, votes, a, ties, b, win_rate, low, high, wilson_low, wilson_high} of A over B."""
    mean, low, high = prompt_bootstrap(votes["value"].to_numpy(), votes["prompt_id"].to_numpy())
    prompts = votes["prompt_id"].nunique()
    wilson_low, wilson_high = proportion_confint(mean * prompts, prompts, alpha=1 - LEVEL, method="wilson")
    counts = votes["preferred"].value_counts()
    return {
        "prompts": prompts,
        "votes": len(votes),
        **{name: int(counts.get(key, 0)) for name, key in (("a", "A"), ("ties", "tie"), ("b", "B"))},
        "win_rate": mean,
        "low": low,
        "high": high,
        "wilson_low": float(wilson_low),
        "wilson_high": float(wilson_high),
    }


def groups(votes: pd.DataFrame, scored: pd.DataFrame | None) -> pd.DataFrame:
    """One row for all votes, and one for every tag where there are several: win_rate, and score_difference with `scored`."""
    rows = []
    tags = sorted(votes["tag"].unique())
    for tag in ["all", *(tags if len(tags) > 1 else [])]:
        chosen = votes if tag == "all" else votes[votes["tag"] == tag]
        rows.append({"tag": tag} | win_rate(chosen) | ({} if scored is None else score_difference(chosen, scored)))
    return pd.DataFrame(rows)


def read_both_scores(paths: list[Path], pairs: list[Vote]) -> pd.DataFrame:
    """Scores of the pairs: prompt_id and sample (the votes'), score_a, score_b. `paths`: the files of A and of B.

    Pictures are found by prompt id and number, or, where the scores have other ids, by the prompt's text and number.
    Raises InputError when the scores are of different scorers or lack a pair.
    """
    a, b = (read_scores(path) for path in paths)
    if set(a["scorer"]) != set(b["scorer"]):
        raise InputError(f"{paths[0]} and {paths[1]}: of different scorers; score both with one, by `star score`")
    rows = pd.DataFrame({"prompt_id": [p.prompt_id for p in pairs], "sample": [p.picture for p in pairs]})
    for side, path, scores in (("a", paths[0], a), ("b", paths[1], b)):
        by = "prompt_id" if set(rows["prompt_id"]) <= set(scores["prompt_id"]) else "prompt"
        names = [getattr(p, by) for p in pairs]
        found = scores.set_index([by, "sample"])["score"]
        if not found.index.is_unique:
            raise InputError(
                f"{path}: a prompt's text stands under several ids; score with the file of prompts of the comparison"
            )
        wanted = pd.MultiIndex.from_arrays([names, rows["sample"]])
        missing = wanted.difference(found.index)
        if len(missing):
            raise InputError(
                f"{path}: no score of `{missing[0][0]}`, picture {missing[0][1]}; score the pictures that were compared"
            )
        rows[f"score_{side}"] = found.loc[wanted].to_numpy()
    return rows


def score_difference(votes: pd.DataFrame, scored: pd.DataFrame) -> dict[str, float]:
    """{score_a, score_b, difference, difference_low, difference_high, same_choice} over the pairs that have votes.

    `difference` is A minus B, with a bootstrap over prompts. `same_choice`: of the votes for a side on pairs with unequal
    scores, the share for the side with the higher score; NaN without such votes.
    """
    judged = votes[["prompt_id", "sample"]].drop_duplicates().merge(scored, on=["prompt_id", "sample"])
    difference = judged["score_a"] - judged["score_b"]
    prompts = judged["prompt_id"].to_numpy()
    mean, low, high = prompt_bootstrap(difference.to_numpy(), prompts)
    each = votes.merge(scored, on=["prompt_id", "sample"])
    decided = each[(each["preferred"] != "tie") & (each["score_a"] != each["score_b"])]
    same = (decided["score_a"] > decided["score_b"]) == (decided["preferred"] == "A")
    return {
        "score_a": prompt_bootstrap(judged["score_a"].to_numpy(), prompts)[0],
        "score_b": prompt_bootstrap(judged["score_b"].to_numpy(), prompts)[0],
        "difference": mean,
        "difference_low": low,
        "difference_high": high,
        "same_choice": float(same.mean()) if len(same) else float("nan"),
    }


def people(ballots: list[Ballot], votes: pd.DataFrame) -> pd.DataFrame:
    """One row a person: judge, votes, pairs, win_rate, ties, left (share among votes for a side), seconds (median)."""
    rows = []
    for ballot in ballots:
        own = votes[votes["judge"] == ballot.judge] if len(votes) else votes
        sided = own[own["side"] != "tie"]
        rows.append(
            {
                "judge": ballot.judge,
                "votes": len(own),
                "pairs": len(ballot.votes),
                "win_rate": own["value"].mean(),
                "ties": (own["side"] == "tie").mean(),
                "left": (sided["side"] == "left").mean(),
                "seconds": own["milliseconds"].median() / 1000,
            }
        )
    return pd.DataFrame(rows)


def raw_agreement(units: list[list[str]]) -> float:
    """The share of equal votes among all pairs of votes on one unit; NaN where no unit has two. `units`: votes on each."""
    equal = [one == other for votes in units for one, other in combinations(votes, 2)]
    return float(np.mean(equal)) if equal else float("nan")


def krippendorff_alpha(units: list[list[str]]) -> float:
    """Nominal alpha of the votes on each unit, any number of votes a unit; NaN where it is not defined.

    Units with one vote count nowhere. Not defined without a unit of two votes, or where all votes are alike.
    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
    """
    paired = [votes for votes in units if len(votes) > 1]
    values = sorted({vote for votes in paired for vote in votes})
    if len(values) < 2:
        return float("nan")
    counts_UV = np.array([[votes.count(value) for value in values] for votes in paired], dtype=float)
    size_U = counts_UV.sum(1)
    within_U = (size_U**2 - np.square(counts_UV).sum(1)) / (size_U - 1)  # disagreeing ordered pairs, each unit weighs its size
    total_V = counts_UV.sum(0)
    between = total_V.sum() ** 2 - np.square(total_V).sum()
    return float(1 - (total_V.sum() - 1) * within_U.sum() / between)


def _units(votes: pd.DataFrame) -> list[list[str]]:
    return [list(unit) for _, unit in votes.groupby(["prompt_id", "sample"])["preferred"]]


def _markdown(ballots: list[Ballot], votes: pd.DataFrame, tables: dict[str, pd.DataFrame], scored: pd.DataFrame | None) -> str:
    first, total = ballots[0], tables["votes"].iloc[0]
    finished = sum(all(vote.vote for vote in ballot.votes) for ballot in ballots)
    lines = [
        f"# A against B: `{first.a}` against `{first.b}`",
        "",
        f"{_verdict(total)} The question was: {first.question}",
        "",
        f"- {_count(len(ballots), 'person', 'people')}, {_count(len(votes), 'vote')} on {_count(len(first.votes), 'pair')} of "
        f"{_count(total['prompts'], 'prompt')}; comparison `{first.comparison}`, seed {first.seed}.",
    ]
    if finished < len(ballots):
        unfinished = ", ".join(
            f"`{row.judge}` {row.votes} of {row.pairs}" for row in tables["people"].itertuples() if row.votes < row.pairs
        )
        lines.append(f"- {finished} of {len(ballots)} finished. Votes of the others count as far as they go: {unfinished}.")
    units = _units(votes)
    if any(len(unit) > 1 for unit in units):
        alpha = krippendorff_alpha(units)
        lines.append(
            f"- Agreement: two people's votes on a pair are equal in {raw_agreement(units):.1%} of cases; Krippendorff's alpha "
            + ("is not defined, all votes are alike." if np.isnan(alpha) else f"{alpha:.2f} (0: chance, 1: full).")
        )
    else:
        lines.append("- Agreement: not measured, no pair has votes of two people.")
    intervals = [(total["low"], total["high"]), (total["wilson_low"], total["wilson_high"])]
    apart = [low > 0.5 or high < 0.5 for low, high in intervals]
    if apart[0] and not apart[1] and total["prompts"] >= _FEW:
        lines.append("- Wilson's interval holds 50 % still: it takes every prompt for one vote. Judge more prompts to be sure.")
    if total["prompts"] < _FEW:
        lines.append(f"- Fewer than {_FEW} prompts: read Wilson's interval, the bootstrap's is too narrow.")
    lines += ["", "## Win rate of A, ties half", "", _rate_table(tables["votes"])]
    if scored is not None:
        lines += ["", "## Scores of the judged pictures, means over prompts", "", _score_table(tables["votes"])]
    lines += ["", "## People", "", _people_table(tables["people"])]
    lines += ["", "Intervals of 95 %, over prompts: they say what other prompts would give, not what other people would."]
    return "\n".join(lines) + "\n"


def _verdict(total: pd.Series) -> str:
    low, high = total["low"], total["high"]
    if np.isnan(low) or total["prompts"] < _FEW:
        low, high = total["wilson_low"], total["wilson_high"]
    said = "people prefer A" if low > 0.5 else "people prefer B" if high < 0.5 else "no preference is shown"
    return f"A wins {total['win_rate']:.1%} [{low:.1%}, {high:.1%}]: {said}."


def _rate_table(table: pd.DataFrame) -> str:
    rows = [
        {
            "tag": row.tag,
            "prompts": row.prompts,
            "A / tie / B": f"{row.a} / {row.ties} / {row.b}",
            "win rate of A": f"{row.win_rate:.3f} {_limits(row.low, row.high)}",
            "Wilson": _limits(row.wilson_low, row.wilson_high),
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _score_table(table: pd.DataFrame) -> str:
    rows = [
        {
            "tag": row.tag,
            "A": f"{row.score_a:.3f}",
            "B": f"{row.score_b:.3f}",
            "A - B": f"{row.difference:+.3f} {_limits(row.difference_low, row.difference_high, '+.3f')}",
            "votes for the higher score": _share(row.same_choice),
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _people_table(table: pd.DataFrame) -> str:
    rows = [
        {
            "judge": row.judge,
            "votes": f"{row.votes} of {row.pairs}",
            "win rate of A": "–" if np.isnan(row.win_rate) else f"{row.win_rate:.3f}",
            "ties": _share(row.ties),
            "left, of votes for a side": _share(row.left),
            "median seconds": "–" if np.isnan(row.seconds) else f"{row.seconds:.1f}",
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _limits(low: float, high: float, form: str = ".3f") -> str:
    return "[–]" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0%}"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
