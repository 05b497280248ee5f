"""Reading an experiment's metrics, scores and guards, and refusing what cannot be tabulated. One function a kind of file.

Frames have one row an image, epoch or guard, and say of which run: task, method, seed, and the tested epoch (0: untrained).
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from star import layout
from star.config import Config, main_scorer, methods_of, run_settings
from star.errors import InputError
from star.files import read_jsonl
from star.scoring.scorer import GUARDS

RUN = ["task", "method", "seed"]
_SCORE_KEYS = {"prompt_id": str, "sample": int, "tag": str, "prompt": str, "filename": str, "scorer": str}
_PARTS = ["seconds_rollout", "seconds_maps", "seconds_reward", "seconds_update"]
_METRIC_KEYS = ["epoch", "reward_mean", "reward_std", "images", "peak_memory_bytes", *_PARTS]


def methods(config: Config, task: str) -> list[str]:
    """The untrained model, then the methods that are trained on a task, in the configuration's order."""
    return ["base", *methods_of(config, task)]


def shared_methods(config: Config, task: str) -> list[str]:
    """The methods of `task` that every task has, as figures of all tasks show them; all of its own where none is shared."""
    own = methods_of(config, task)
    return [method for method in own if all(method in methods_of(config, other) for other in config.tasks)] or own


def reported(config: Config, task: str) -> list[str]:
    """The scorers whose scores are reported for a task; the first is its main column."""
    return config.tasks[task].report


def column_name(config: Config, task: str, scorer: str) -> str:
    """A reported score in headings: the main one by its task, others by task and scorer."""
    return task if scorer == main_scorer(config, task) else f"{task}: {scorer}"


def main_scores(config: Config, scores: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of `scores` that belong to the main column of a task."""
    return scores[(scores["task"] == task) & (scores["metric"] == main_scorer(config, task))]


# Scores.


def read_scores(path: Path) -> pd.DataFrame:
    """A scores file, one row an image: prompt_id, sample, tag, prompt, filename, scorer, score; `reason` where there is one.

    Raises InputError.
    """
    rows = read_jsonl(path)
    if not rows:
        raise InputError(f"{path}: no scores in it; delete it and rerun `star score`")
    for number, row in enumerate(rows, start=1):
        for key, kind in _SCORE_KEYS.items():
            if not isinstance(row.get(key), kind):
                raise InputError(f"{path}:{number}: `{key}` is missing or no {kind.__name__}; rerun `star score`")
        if not _finite(row.get("score")):
            raise InputError(f"{path}:{number}: `score` is {row.get('score')!r}, not a finite number; rerun `star score`")
    columns = [*_SCORE_KEYS, "score"] + ["reason"] * ("reason" in rows[0])
    frame = pd.DataFrame(rows, columns=columns).astype({"score": float})
    if frame.groupby("prompt_id").size().nunique() != 1 or frame.duplicated(["prompt_id", "sample"]).any():
        raise InputError(f"{path}: prompts with different numbers of images; delete it and rerun `star score`")
    return frame


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_scores(config: Config, task: str, method: str, seed: int) -> dict[Path, pd.DataFrame]:
    """The scores files of a run's epochs: read_scores' columns and task, method, seed, epoch, metric (the scorer's name).

    Raises InputError when the final epoch was not scored.
    """
    run, frames = layout.run(config, task, method, seed), {}
    epochs = layout.epochs(config, task, method)
    main, *others = reported(config, task)
    for metric in (main, *others):
        for epoch in epochs:
            path = run.scores(epoch, metric if metric in others else None)
            if path.is_file():
                of_run = {"task": task, "method": method, "seed": seed, "epoch": epoch, "metric": metric}
                frames[path] = read_scores(path).assign(**of_run)
            elif epoch == epochs[-1]:
                command = f"star score --task {metric} --images {run.samples(epoch)} --out {path}"
                raise InputError(f"{path}: no such file; run `{command}`")
    return frames


def scores(config: Config) -> pd.DataFrame:
    """The scores of every epoch that has any, as `run_scores`.

    Raises InputError when the final epoch of a run was not scored, when scores of one column come from different scorers, or
    when methods were scored on different prompts or samples.
    """
    frames = []
    for task in config.tasks:
        first: dict[str, tuple[Path, pd.DataFrame]] = {}
        for method in methods(config, task):
            for seed in config.seeds:
                for path, frame in run_scores(config, task, method, seed).items():
                    comparable(*first.setdefault(frame["metric"].iloc[0], (path, frame)), path, frame)
                    frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def comparable(first_path: Path, first: pd.DataFrame, path: Path, frame: pd.DataFrame) -> None:
    """Raise InputError when the scores of two epochs are of different scorers, or of different prompts or samples."""
    scorers = {scorer: where for where, f in ((path, frame), (first_path, first)) for scorer in f["scorer"].unique()}
    if len(scorers) > 1:
        a, b = sorted(scorers)[:2]
        raise InputError(
            f"{first_path} and {path}: scored by different scorers (`{a}`, `{b}`), which no column may mix; "
            "score both again with `star score`"
        )
    pairs = ["prompt_id", "sample"]
    if not first.set_index(pairs).sort_index().index.equals(frame.set_index(pairs).sort_index().index):
        raise InputError(
            f"{first_path} and {path}: other prompts or samples, so they cannot be paired; "
            "sample both again with `star sample` on the same prompts"
        )


def final(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `scores` that belong to final epochs."""
    last = {
        (task, method): layout.epochs(config, task, method)[-1] for task in config.tasks for method in methods(config, task)
    }
    return scores[scores["epoch"] == pd.MultiIndex.from_frame(scores[["task", "method"]]).map(last)]


# Guards.


def read_guards(path: Path) -> list[tuple[str, float | None, int, str]]:
    """(guard, value, images, what measured it) of every guard in a file of star.scoring.guards. Raises InputError."""
    remedy = "write it again with `star score --guards`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, cross = content["images"], content["cross"]
        rows = [(name, content[name], images, content["features"] if name == "diversity" else "") for name in GUARDS]
        rows += [(scorer, other["mean"], other["images"], other["scorer"]) for scorer, other in cross.items()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the guards of a checkpoint ({error!r}); {remedy}") from None
    for name, value, *_ in rows:
        one_picture = name == "diversity" and value is None
        if not (one_picture or _finite(value)):
            raise InputError(f"{path}: `{name}` is {value!r}, not a finite number; {remedy}")
    return rows


def guards(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """The collapse guards of the epochs in `scores`: task, method, seed, epoch, guard, value, images, by; NaN for none.

    `guard` is one of star.scoring.scorer.GUARDS, or a scorer that was laid over another task's pictures; `by` is what measured
    it. Raises InputError when the file of a final epoch is missing, or when a guard of one task was measured by different
    models.
    """
    rows: list[tuple] = []
    first: dict[tuple[str, str], tuple[Path, str]] = {}
    for task, method, seed, epoch in scores[[*RUN, "epoch"]].drop_duplicates().itertuples(index=False):
        run = layout.run(config, task, method, seed)
        path = run.guards(epoch)
        if not path.is_file():
            if epoch != layout.epochs(config, task, method)[-1]:
                continue
            command = f"star score --task {task} --images {run.samples(epoch)} --out {run.scores(epoch)} --guards {path}"
            raise InputError(f"{path}: no such file; run `{command}`")
        for guard, value, images, by in read_guards(path):
            first_path, first_by = first.setdefault((task, guard), (path, by))
            if first_by != by:
                raise InputError(
                    f"{first_path} and {path}: `{guard}` measured by different models (`{first_by}`, `{by}`), which no "
                    "column may mix; measure both again with `star score --guards`"
                )
            rows.append((task, method, seed, epoch, guard, value, images, by))
    return pd.DataFrame(rows, columns=[*RUN, "epoch", "guard", "value", "images", "by"]).astype({"value": float})


def guard_order(names: Iterable[str]) -> list[str]:
    """Guards in the order of tables: those of the pictures themselves, then the other tasks' scorers."""
    names = set(names)
    return [name for name in GUARDS if name in names] + sorted(names - set(GUARDS))


# Metrics of trainings.


def read_metrics(path: Path, epochs: int, remedy: str) -> pd.DataFrame:
    """The first `epochs` lines of a metrics.jsonl. Raises InputError, with the `remedy`, when one is missing or incomplete."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    frame = pd.DataFrame(read_jsonl(path))
    for key in _METRIC_KEYS:
        if key not in frame or not pd.api.types.is_numeric_dtype(frame[key]) or frame[key].isna().any():
            raise InputError(f"{path}: `{key}` is not a number in every line; {remedy}")
    frame = frame[frame["epoch"] <= epochs]
    if frame["epoch"].tolist() != list(range(1, epochs + 1)):
        raise InputError(f"{path}: {len(frame)} of {epochs} epochs; {remedy}, which continues it")
    return frame


def run_metrics(config: Config, task: str, method: str, seed: int) -> pd.DataFrame:
    """metrics.jsonl of a training: its keys and task, method, seed, seconds (sum of its parts). Raises InputError."""
    run = layout.run(config, task, method, seed)
    epochs = run_settings(config, task, method).training.epochs
    remedy = f"run `star train --task {task} --method {method} --seed {seed} --out {run.folder}`"
    frame = read_metrics(run.metrics, epochs, remedy)
    return frame.assign(task=task, method=method, seed=seed, seconds=frame[_PARTS].sum(axis=1))


def metrics(config: Config) -> pd.DataFrame:
    """`run_metrics` of every training, one row an epoch. Raises InputError."""
    return pd.concat([run_metrics(config, *run) for run in layout.runs(config, base=False)], ignore_index=True)


# Pictures.


def sample_grid(config: Config, final: pd.DataFrame, prompts: int = 3) -> pd.DataFrame:
    """The rows of `final` to show as pictures, with their path in the column `picture`. Raises InputError.

    Sample 0 of the first seed, for `prompts` prompts a task that lie evenly in the test set ordered by tag and id: no
    choice by score.
    """
    chosen = []
    for task in config.tasks:
        rows = main_scores(config, final, task)
        rows = rows[rows["seed"] == config.seeds[0]]
        rows = rows[rows["sample"] == rows["sample"].min()]
        ids = rows.drop_duplicates("prompt_id").sort_values(["tag", "prompt_id"])["prompt_id"].tolist()
        places = [int((i + 0.5) * len(ids) / prompts) for i in range(min(prompts, len(ids)))]
        chosen += [rows[rows["prompt_id"] == ids[place]] for place in places]
    shown = pd.concat(chosen, ignore_index=True)
    shown["picture"] = [
        layout.run(config, row.task, row.method, row.seed).samples(row.epoch) / row.filename for row in shown.itertuples()
    ]
    for picture in shown["picture"]:
        if not picture.is_file():
            folder = picture.parents[2]
            raise InputError(f"{picture}: no such picture; run `star sample --out {folder}` with the run's adapter")
    return shown
