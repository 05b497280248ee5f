"""Scores compared: the tables behind docs/evidence.md. Intervals are 95 %; star/evidence/estimates.py says of what."""

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd

from star.analysis.results import steps
from star.analysis.statistics import PAIR, by_tag
from star.config import Config, methods_of
from star.evidence import estimates
from star.evidence.estimates import Cells
from star.evidence.questions import ATTRIBUTE_METHODS, MAIN, QUESTIONS
from star.scoring.rules import FAILURES

INTERVAL = ["mean", "low", "high"]
KINDS = ("local", "dark", "light", "one_color")
Curves = dict[int, pd.DataFrame]  # checkpoint -> scores


def seeds_of(scores: pd.DataFrame, task: str, *methods: str) -> list[int]:
    """The seeds under which all of some methods were trained and scored on a task."""
    found = [set(scores.loc[(scores["task"] == task) & (scores["method"] == method), "seed"]) for method in methods]
    return sorted(set.intersection(*found))


def strata(task: str) -> str | None:
    return "tag" if by_tag(task) else None


def curves(config: Config, scores: pd.DataFrame, task: str, method: str, seeds: Collection[int] | None = None) -> Curves:
    """Checkpoint -> scores of one method under `seeds` (none: all that it has), the untrained model's at 0."""
    of_task = scores[scores["task"] == task]
    of_task = of_task[of_task["seed"].isin(seeds_of(scores, task, method) if seeds is None else seeds)]
    base, own = of_task[of_task["method"] == "base"], of_task[of_task["method"] == method]
    return {0: base} | {step: own[own["step"] == step] for step in (steps(config, task, method) if method != "base" else [])}


def _differences(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Score differences of two methods, paired by seed, prompt and initial noise."""
    reference = other.set_index(PAIR)["score"]
    return one.assign(score=one["score"].to_numpy() - reference.loc[pd.MultiIndex.from_frame(one[PAIR])].to_numpy())


def _area(points: Curves) -> pd.DataFrame:
    """One score an image: the mean over the training's length of what its checkpoints score, lines between them."""
    epochs = np.array(list(points))
    weighted = [f.assign(score=f["score"] * w) for f, w in zip(points.values(), estimates.time_average(epochs), strict=True)]
    return pd.concat(weighted).groupby([*PAIR, "tag"], as_index=False)["score"].sum()


def _pairs(config: Config, scores: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame, Curves, Curves]]:
    """The pairs that a question names and two seeds share: their names, differences of the final scores, curves of both."""
    asked = tuple(dict.fromkeys([*MAIN, *(pair for question in QUESTIONS for pair in question.pairs)]))
    for task in config.tasks:
        for method, reference in asked:
            seeds = seeds_of(scores, task, method, reference)
            if len(seeds) > 1:
                one, other = (curves(config, scores, task, m, seeds) for m in (method, reference))
                final = _differences(one[max(one)], other[max(other)])
                yield {"task": task, "method": method, "reference": reference}, final, one, other


def by_seed(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Difference of the final scores of every pair under every seed: task, method, reference, seed, difference."""
    rows = []
    for pair, final, *_ in _pairs(config, scores):
        values = estimates.by_seed(estimates.cells(final, "score", strata(pair["task"])))
        rows += [pair | {"seed": s, "difference": v} for s, v in zip(sorted(final["seed"].unique()), values, strict=True)]
    return pd.DataFrame(rows)


def comparisons(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Paired differences of every pair that a question names and two seeds share; one row a task and pair.

    Columns: family (`main`, or `questions`: p-values are corrected within), letters of the questions, task, method, reference;
    mean, low, high of the final scores' difference (bootstrap over seeds and prompts); mixed_mean, mixed_low, mixed_high, p,
    p_holm (mixed model); area, area_low, area_high of the difference of the learning curves' mean heights; seeds, prompts,
    images.
    """
    rows = []
    for pair, final, one, other in _pairs(config, scores):
        by = strata(pair["task"])
        found = estimates.cells(final, "score", by)
        model = estimates.mixed(found)
        area = (np.nan, np.nan, np.nan)
        if list(one) == list(other):
            area = estimates.bootstrap(estimates.cells(_differences(_area(one), _area(other)), "score", by))
        names = (pair["method"], pair["reference"])
        letters = "".join(q.letter for q in QUESTIONS if names in q.pairs)
        rows.append(
            {"family": "main" if names in MAIN else "questions", "letters": letters}
            | pair
            | dict(zip(INTERVAL, estimates.bootstrap(found), strict=True))
            | {"mixed_mean": model.mean, "mixed_low": model.low, "mixed_high": model.high, "p": model.p}
            | dict(zip(("area", "area_low", "area_high"), area, strict=True))
            | {"seeds": len(found.value_SP), "prompts": found.value_SP.shape[1], "images": len(final)}
        )
    table = pd.DataFrame(rows)
    corrected = table.groupby("family")["p"].transform(lambda p: estimates.holm(p.to_numpy()))
    table.insert(table.columns.get_loc("p") + 1, "p_holm", corrected)
    return table


def learning(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Score of every checkpoint: task, method, epoch, mean, low, high (bootstrap over seeds and prompts), images, seeds."""
    rows = []
    for task in config.tasks:
        for method in methods_of(config, task):
            for epoch, found in curves(config, scores, task, method).items():
                values = estimates.bootstrap(estimates.cells(found, "score", strata(task)))
                known = {"task": task, "method": method, "epoch": epoch, "images": len(found), "seeds": found["seed"].nunique()}
                rows.append(known | dict(zip(INTERVAL, values, strict=True)))
    return pd.DataFrame(rows)


def failures(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """What is wrong with final test images of geneval: task, method, failure, mean, low, high, images.

    Intervals: bootstrap over seeds and prompts. Shares are of all images and weighted as the score is, so that a method's
    failures add up to 1 - its score; `base` comes first.
    """
    rows = []
    for method in ("base", *methods_of(config, "geneval")):
        of_epoch = curves(config, scores, "geneval", method)
        final = of_epoch[max(of_epoch)]
        for kind in FAILURES:
            found = estimates.cells(final.assign(score=(final["failure"] == kind).astype(float)), "score", strata("geneval"))
            rows.append(("geneval", method, kind, *estimates.bootstrap(found), len(final)))
    return pd.DataFrame(rows, columns=["task", "method", "failure", *INTERVAL, "images"])


def thresholds(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Epochs until half of what `flow_grpo` gains: task, method, threshold, epochs, low, high, reached (share of resamples).

    inf is "not reached"; a task on which flow_grpo gains nothing has no rows.
    """
    rows = []
    for task in config.tasks:
        if "flow_grpo" not in methods_of(config, task):
            continue
        heights = {
            m: {e: estimates.cells(f, "score", strata(task)) for e, f in curves(config, scores, task, m).items()}
            for m in methods_of(config, task)
        }
        scalar = [estimates.estimate(c) for c in heights["flow_grpo"].values()]
        threshold = (scalar[0] + scalar[-1]) / 2
        if threshold <= scalar[0]:
            continue
        for method, of_epoch in heights.items():
            values = estimates.bootstrap_epochs_to(threshold, np.array(list(of_epoch)), list(of_epoch.values()))
            known = {"task": task, "method": method, "threshold": threshold}
            rows.append(known | dict(zip(("epochs", "low", "high", "reached"), values, strict=True)))
    return pd.DataFrame(rows, columns=["task", "method", "threshold", "epochs", "low", "high", "reached"])


def attributes(scores: pd.DataFrame, maps: pd.DataFrame) -> pd.DataFrame:
    """By kind of prompt: quantity, kind, contrast, mean, low, high, prompts.

    Quantities: `gain`, star's score minus flow_grpo's; `learned`, flow_grpo's minus base's; `entropy` and `effective_area` of
    star's maps, means over steps. With `contrast`: the kind minus `local`, matched where both have the same contents.
    """
    of_method = {m: scores[scores["method"] == m] for m in ATTRIBUTE_METHODS}
    values = {
        "gain": _differences(of_method["star"], of_method["flow_grpo"]),
        "learned": _differences(of_method["flow_grpo"], of_method["base"]),
    }
    mean_maps = maps.groupby(["seed", "prompt_id", "tag", "prompt"], as_index=False)[["entropy", "effective_area"]].mean()
    values |= {name: mean_maps.assign(score=mean_maps[name]) for name in ("entropy", "effective_area")}
    rows = []
    for quantity, frame in values.items():
        of_kind = {kind: frame[frame["tag"] == kind] for kind in KINDS}
        for kind in KINDS:
            found = estimates.cells(of_kind[kind], "score", None)
            rows.append((quantity, kind, False, *estimates.bootstrap(found), found.value_SP.shape[1]))
            if kind != "local":
                against = _against_local(of_kind["local"], of_kind[kind])
                rows.append((quantity, kind, True, *estimates.bootstrap(against), found.value_SP.shape[1]))
    return pd.DataFrame(rows, columns=["quantity", "kind", "contrast", *INTERVAL, "prompts"])


def _against_local(local: pd.DataFrame, other: pd.DataFrame) -> Cells:
    """Cells whose estimate is the mean of `other` minus that of `local`, matched by content where contents are the same."""
    content = other["prompt"].str.replace(r" on a \w+ background$", "", regex=True)
    if set(content) == set(local["prompt"]):
        one = estimates.cells(other.assign(prompt_id=content), "score", None)
        same = estimates.cells(local.assign(prompt_id=local["prompt"]), "score", None)
        return one._replace(value_SP=one.value_SP - same.value_SP)
    both = estimates.cells(pd.concat([local, other]), "score", "tag")
    return both._replace(weights={local["tag"].iloc[0]: -1.0, other["tag"].iloc[0]: 1.0})
