"""Tables of several seeds: methods compared in pairs, learning curves, failures and guards. Intervals: statistics.py.

All are of the tasks' main scores. Rows are paired by seed, prompt and initial noise; two seeds are the least.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from star import layout
from star.analysis.results import guard_order, main_scores, shared_methods
from star.analysis.statistics import (
    PAIR,
    Cells,
    area_weights,
    bootstrap_epochs_to,
    cells,
    estimate,
    holm,
    mixed_model,
    paired,
    seed_bootstrap,
    seed_estimates,
    strata,
    student,
    value_at,
)
from star.analysis.tables import INTERVAL
from star.config import Config, main_scorer, methods_of
from star.scoring.rules import FAILURES

Pair = tuple[str, str]  # method, reference
Curve = dict[int, pd.DataFrame]  # epoch -> scores of its pictures
KINDS = ("local", "dark", "light", "one_color")  # tags of the prompts of global attributes
_NO_INTERVAL = (np.nan, np.nan, np.nan)


class Compared(NamedTuple):
    """A pair of methods on a task, under the seeds that both have: final score differences and both learning curves."""

    task: str
    method: str
    reference: str
    final: pd.DataFrame
    curve: Curve
    reference_curve: Curve


def seeds_of(scores: pd.DataFrame, task: str, *methods: str) -> list[int]:
    """The seeds under which all of some methods were trained and scored on a task."""
    seeds = [set(scores.loc[(scores["task"] == task) & (scores["method"] == method), "seed"]) for method in methods]
    return sorted(set.intersection(*seeds))


def curve(config: Config, scores: pd.DataFrame, task: str, method: str, seeds: Collection[int]) -> Curve:
    """Epoch -> main scores of one method under `seeds`, the untrained model's at 0."""
    scores = main_scores(config, scores, task)
    scores = scores[scores["seed"].isin(seeds)]
    base, trained = scores[scores["method"] == "base"], scores[scores["method"] == method]
    epochs = layout.epochs(config, task, method) if method != "base" else []
    return {0: base} | {epoch: trained[trained["epoch"] == epoch] for epoch in epochs}


def own_curve(config: Config, scores: pd.DataFrame, task: str, method: str) -> Curve:
    """`curve` under all seeds that the method has."""
    return curve(config, scores, task, method, seeds_of(scores, task, method))


def _cells(config: Config, task: str, scores: pd.DataFrame) -> Cells:
    return cells(scores, "score", strata(main_scorer(config, task)))


def _area(points: Curve) -> pd.DataFrame:
    """One score an image: the mean over the training's length of what its checkpoints score, lines between them."""
    weights = area_weights(np.array(list(points)))
    weighted = [scores.assign(score=scores["score"] * weight) for scores, weight in zip(points.values(), weights, strict=True)]
    return pd.concat(weighted).groupby([*PAIR, "tag"], as_index=False)["score"].sum()


def _last(points: Curve) -> pd.DataFrame:
    return points[max(points)]


def _compared(config: Config, scores: pd.DataFrame, pairs: Collection[Pair]) -> Iterator[Compared]:
    """Those of the pairs that two seeds share, task by task."""
    for task in config.tasks:
        for method, reference in pairs:
            seeds = seeds_of(scores, task, method, reference)
            if len(seeds) > 1:
                one, other = (curve(config, scores, task, name, seeds) for name in (method, reference))
                yield Compared(task, method, reference, paired(_last(one), _last(other)), one, other)


def by_seed(config: Config, scores: pd.DataFrame, pairs: Collection[Pair]) -> pd.DataFrame:
    """Difference of the final scores of every pair under every seed: task, method, reference, seed, difference."""
    rows = []
    for pair in _compared(config, scores, pairs):
        seeds = sorted(pair.final["seed"].unique())
        differences = seed_estimates(_cells(config, pair.task, pair.final))
        for seed, difference in zip(seeds, differences, strict=True):
            rows.append((pair.task, pair.method, pair.reference, seed, difference))
    return pd.DataFrame(rows, columns=["task", "method", "reference", "seed", "difference"])


def comparisons(config: Config, scores: pd.DataFrame, families: dict[Pair, str]) -> pd.DataFrame:
    """Paired differences of every pair that two seeds share; one row a task and pair.

    `families` names the family within which a pair's p-value is corrected for their number. Columns: family, task, method,
    reference; mean, low, high of the final scores' difference (bootstrap over seeds and prompts); mixed_mean, mixed_low,
    mixed_high, p, p_holm (mixed model); area, area_low, area_high of the difference of the learning curves' mean heights;
    seeds, prompts, images.
    """
    rows = []
    for pair in _compared(config, scores, families):
        final = _cells(config, pair.task, pair.final)
        model = mixed_model(final)
        area = _NO_INTERVAL
        if list(pair.curve) == list(pair.reference_curve):
            difference = paired(_area(pair.curve), _area(pair.reference_curve))
            area = seed_bootstrap(_cells(config, pair.task, difference))
        rows.append(
            {"family": families[pair.method, pair.reference]}
            | {"task": pair.task, "method": pair.method, "reference": pair.reference}
            | dict(zip(INTERVAL, seed_bootstrap(final), strict=True))
            | {"mixed_mean": model.mean, "mixed_low": model.low, "mixed_high": model.high, "p": model.p}
            | dict(zip(("area", "area_low", "area_high"), area, strict=True))
            | {"seeds": len(final.value_SP), "prompts": final.value_SP.shape[1], "images": len(pair.final)}
        )
    table = pd.DataFrame(rows)
    corrected = table.groupby("family")["p"].transform(lambda p: holm(p.to_numpy()))
    table.insert(table.columns.get_loc("p") + 1, "p_holm", corrected)
    return table


def of_task(table: pd.DataFrame, task: str, **equal: object) -> pd.DataFrame:
    """The rows of a task whose other columns have the values of `equal`."""
    rows = table[table["task"] == task]
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows


def compared(comparisons: pd.DataFrame, task: str, pairs: Collection[Pair]) -> pd.DataFrame:
    """The comparisons of those of the pairs that were compared on a task, in the pairs' order."""
    rows = of_task(comparisons, task).set_index(["method", "reference"])
    return rows.loc[[pair for pair in pairs if pair in rows.index]].reset_index()


def by_task(config: Config, comparisons: pd.DataFrame, pairs: Collection[Pair]) -> dict[str, pd.DataFrame]:
    """`compared` on the tasks that have any of the pairs."""
    rows = {task: compared(comparisons, task, pairs) for task in config.tasks}
    return {task: compared_there for task, compared_there in rows.items() if len(compared_there)}


# Learning curves.


def learning(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Score of every epoch: task, method, epoch, images, seeds, mean, low, high (bootstrap over seeds and prompts)."""
    rows = []
    for task in config.tasks:
        for method in methods_of(config, task):
            for epoch, of_epoch in own_curve(config, scores, task, method).items():
                estimated = seed_bootstrap(_cells(config, task, of_epoch))
                rows.append((task, method, epoch, len(of_epoch), of_epoch["seed"].nunique(), *estimated))
    return pd.DataFrame(rows, columns=["task", "method", "epoch", "images", "seeds", *INTERVAL])


def thresholds(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """Epochs until half of what `flow_grpo` gains: task, method, threshold, epochs, epochs_low, epochs_high, reached.

    `reached` is the share of resamples that reach it, inf "not reached". A task on which flow_grpo gains nothing has no rows.
    """
    rows = []
    for task in config.tasks:
        trained = methods_of(config, task)
        if "flow_grpo" not in trained:
            continue
        cells_of = {}
        for method in trained:
            points = own_curve(config, scores, task, method)
            cells_of[method] = {epoch: _cells(config, task, of_epoch) for epoch, of_epoch in points.items()}
        scalar = [estimate(c) for c in cells_of["flow_grpo"].values()]
        threshold = (scalar[0] + scalar[-1]) / 2
        if threshold <= scalar[0]:
            continue
        for method, of_epoch in cells_of.items():
            epochs, reached = bootstrap_epochs_to(threshold, np.array(list(of_epoch)), list(of_epoch.values()))
            rows.append((task, method, threshold, *epochs, reached))
    return pd.DataFrame(rows, columns=["task", "method", "threshold", "epochs", "epochs_low", "epochs_high", "reached"])


# Failures of scorers that say what is wrong with a picture.


def failures(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """What is wrong with final test images, where a column `failure` says it: task, method, failure, mean, low, high, images.

    Intervals: bootstrap over seeds and prompts. Shares are of all images and weighted as the score is, so that a method's
    failures add up to 1 - its score; `base` comes first.
    """
    rows = []
    for task in config.tasks:
        if "failure" not in scores or main_scores(config, scores, task)["failure"].isna().all():
            continue
        for method in ("base", *methods_of(config, task)):
            final = _last(own_curve(config, scores, task, method))
            for kind in FAILURES:
                share = _cells(config, task, final.assign(score=(final["failure"] == kind).astype(float)))
                rows.append((task, method, kind, *seed_bootstrap(share), len(final)))
    return pd.DataFrame(rows, columns=["task", "method", "failure", *INTERVAL, "images"])


# Collapse guards.


def _guards_by_epoch(config: Config, scores: pd.DataFrame, guards: pd.DataFrame, run: tuple[str, str, int]) -> pd.DataFrame:
    """Score and guards of one run (task, method, seed) by epoch, the untrained model's first."""
    task, method, seed = run
    of_seed = guards[(guards["task"] == task) & (guards["seed"] == seed)]
    rows = {}
    for epoch, of_epoch in curve(config, scores, task, method, [seed]).items():
        measured = of_seed[(of_seed["method"] == (method if epoch else "base")) & (of_seed["epoch"] == epoch)]
        values = measured.set_index("guard")["value"].to_dict()
        rows[epoch] = {"score": estimate(_cells(config, task, of_epoch)), **values}
    return pd.DataFrame.from_dict(rows, orient="index")


def guards_at_equal_score(config: Config, scores: pd.DataFrame, guards: pd.DataFrame) -> pd.DataFrame:
    """Guards of shared methods minus flow_grpo's where both first reach the same score, by seed.

    That score is the lower of the two best ones, if above the untrained model's: a seed where it is not does not count.
    Columns: task, method, guard, mean, low, high, seeds.
    """
    rows = []
    for task in config.tasks:
        shared = shared_methods(config, task)
        if "flow_grpo" not in shared:
            continue
        defined = guards["value"].notna() & (guards["task"] == task)
        names = guards.loc[defined, "guard"].unique()
        paths = {
            (method, seed): _guards_by_epoch(config, scores, guards, (task, method, seed))
            for method in shared
            for seed in seeds_of(scores, task, method)
        }
        for method in shared:
            if method == "flow_grpo":
                continue
            for guard in names:
                differences = []
                for seed in seeds_of(scores, task, method, "flow_grpo"):
                    one, other = paths[method, seed], paths["flow_grpo", seed]
                    score = min(one["score"].max(), other["score"].max())
                    if score > one["score"].iloc[0]:
                        at, reference_at = (value_at(score, p["score"].to_numpy(), p[guard].to_numpy()) for p in (one, other))
                        differences.append(at - reference_at)
                estimated = student(np.array(differences)) if differences else _NO_INTERVAL
                rows.append((task, method, guard, *estimated, len(differences)))
    return pd.DataFrame(rows, columns=["task", "method", "guard", *INTERVAL, "seeds"])


def guard_paths(config: Config, scores: pd.DataFrame, guards: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of score and guards: task, method, epoch, score, and a column a guard."""
    frames = []
    for task in config.tasks:
        for method in shared_methods(config, task):
            seeds = seeds_of(scores, task, method)
            runs = [_guards_by_epoch(config, scores, guards, (task, method, seed)) for seed in seeds]
            mean = pd.concat(runs).groupby(level=0).mean().rename_axis("epoch").reset_index()
            frames.append(mean.assign(task=task, method=method))
    table = pd.concat(frames, ignore_index=True)
    index = ["task", "method", "epoch", "score"]
    return table[[*index, *guard_order(column for column in table if column not in index)]]


# Prompts of global attributes beside local ones.


def attributes(scores: pd.DataFrame, maps: pd.DataFrame) -> pd.DataFrame:
    """By kind of prompt (its tag): quantity, kind, contrast, mean, low, high, prompts.

    Quantities: `gain`, star's score minus flow_grpo's; `learned`, flow_grpo's minus base's; `entropy` and `effective_area` of
    star's maps, means over steps. With `contrast`: the kind minus `local`, matched where both have the same contents.
    """
    star, scalar, base = (scores[scores["method"] == method] for method in ("star", "flow_grpo", "base"))
    frames = {"gain": paired(star, scalar), "learned": paired(scalar, base)}
    of_prompt = maps.groupby(["seed", "prompt_id", "tag", "prompt"], as_index=False)[["entropy", "effective_area"]].mean()
    frames |= {name: of_prompt.assign(score=of_prompt[name]) for name in ("entropy", "effective_area")}
    rows = []
    for quantity, frame in frames.items():
        of_kind = dict(list(frame.groupby("tag")))
        for kind in KINDS:
            each = cells(of_kind[kind], "score", None)
            prompts = each.value_SP.shape[1]
            rows.append((quantity, kind, False, *seed_bootstrap(each), prompts))
            if kind != "local":
                contrast = _against_local(of_kind["local"], of_kind[kind])
                rows.append((quantity, kind, True, *seed_bootstrap(contrast), prompts))
    return pd.DataFrame(rows, columns=["quantity", "kind", "contrast", *INTERVAL, "prompts"])


def _against_local(local: pd.DataFrame, other: pd.DataFrame) -> Cells:
    """Cells whose estimate is the mean of `other` minus that of `local`, matched by content where contents are the same."""
    content = other["prompt"].str.replace(r" on a \w+ background$", "", regex=True)
    if set(content) == set(local["prompt"]):
        one = cells(other.assign(prompt_id=content), "score", None)
        same = cells(local.assign(prompt_id=local["prompt"]), "score", None)
        return one._replace(value_SP=one.value_SP - same.value_SP)
    both = cells(pd.concat([local, other]), "score", "tag")
    return both._replace(weights={local["tag"].iloc[0]: -1.0, other["tag"].iloc[0]: 1.0})
