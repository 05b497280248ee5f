"""Reading an experiment's metrics and scores, and refusing what cannot be tabulated."""

import json
import math
from pathlib import Path

import pandas as pd

from star import layout
from star.config import Config, methods_of, run_settings
from star.errors import InputError
from star.files import read_jsonl
from star.scoring.scorer import GUARDS

_SCORE_KEYS = {"prompt_id": str, "sample": int, "tag": str, "prompt": str, "filename": str, "scorer": str}
_PARTS = ["seconds_rollout", "seconds_maps", "seconds_reward", "seconds_update"]
_METRIC_KEYS = ["epoch", "reward_mean", "reward_std", "images", "peak_memory_bytes", *_PARTS]


def methods(config: Config, task: str) -> list[str]:
    """The untrained model, then the methods that are trained on a task, in the configuration's order."""
    return ["base", *methods_of(config, task)]


def shared_methods(config: Config, task: str) -> list[str]:
    """The methods of `task` that every task has, as figures of all tasks show them; all of its own where none is shared."""
    own = methods_of(config, task)
    return [m for m in own if all(m in methods_of(config, other) for other in config.tasks)] or own


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
        score = row.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(f"{path}:{number}: `score` is {score!r}, not a finite number; rerun `star score`")
    columns = [*_SCORE_KEYS, "score"] + ["reason"] * ("reason" in rows[0])
    frame = pd.DataFrame(rows, columns=columns).astype({"score": float})
    if (frame.groupby("prompt_id").size().nunique()) != 1 or frame.duplicated(["prompt_id", "sample"]).any():
        raise InputError(f"{path}: prompts with different numbers of images; delete it and rerun `star score`")
    return frame


def run_scores(config: Config, task: str, method: str, seed: int) -> dict[Path, pd.DataFrame]:
    """The scores files of a run's checkpoints: read_scores' columns and task, method, seed, step.

    Raises InputError when the final checkpoint was not scored.
    """
    run, found = layout.run(config, task, method, seed), {}
    *earlier, final = layout.epochs(config, task, method)
    for step in [*earlier, final]:
        path = run.scores(step)
        if path.is_file():
            found[path] = read_scores(path).assign(task=task, method=method, seed=seed, step=step)
        elif step == final:
            images = run.samples(step)
            raise InputError(f"{path}: no such file; run `star score --task {task} --images {images} --out {path}`")
    return found


def scores(config: Config) -> pd.DataFrame:
    """The scores of every checkpoint that has any: read_scores' columns and task, method, seed, step.

    Raises InputError when the final checkpoint of a run was not scored, when scores of one task come from different
    scorers, or when methods were scored on different prompts or samples.
    """
    frames = []
    for task in config.tasks:
        of_task = {}
        for method in methods(config, task):
            for seed in config.seeds:
                of_task |= run_scores(config, task, method, seed)
        (first_path, first), *others = of_task.items()
        for path, frame in others:
            comparable(first_path, first, path, frame)
        frames += of_task.values()
    return pd.concat(frames, ignore_index=True)


def comparable(first_path: Path, first: pd.DataFrame, path: Path, frame: pd.DataFrame) -> None:
    """Raise InputError when the scores of two checkpoints are of different scorers, or of different prompts or samples."""
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


def guards(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """The collapse guards of the checkpoints in `scores`: task, method, seed, step, guard, value, images; NaN for none.

    `guard` is one of star.scoring.GUARDS, or a task whose scorer was laid over another task's pictures; `by` is what
    measured it. Raises InputError when the file of a final checkpoint is missing, or when a guard of one task was measured by
    different models.
    """
    rows, by = [], {}
    for task, method, seed, step in scores[["task", "method", "seed", "step"]].drop_duplicates().itertuples(index=False):
        run = layout.run(config, task, method, seed)
        path = run.guards(step)
        if not path.is_file():
            if step != layout.epochs(config, task, method)[-1]:
                continue
            images, out = run.samples(step), run.scores(step)
            again = f"star score --task {task} --images {images} --out {out} --guards {path}"
            raise InputError(f"{path}: no such file; run `{again}`")
        for guard, value, images, made_by in read_guards(path):
            first_path, first = by.setdefault((task, guard), (path, made_by))
            if first != made_by:
                raise InputError(
                    f"{first_path} and {path}: `{guard}` measured by different models (`{first}`, `{made_by}`), which no "
                    "column may mix; measure both again with `star score --guards`"
                )
            rows.append((task, method, seed, step, guard, value, images, made_by))
    columns = ["task", "method", "seed", "step", "guard", "value", "images", "by"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float})


def read_guards(path: Path) -> list[tuple[str, float | None, int, str]]:
    """(guard, value, images, what measured it) of every guard in a file of star.scoring.guards. Raises InputError."""
    remedy = "write it again with `star score --guards`"
    try:
        found = json.loads(path.read_text())
        images, cross = found["images"], found["cross"]
        rows = [(name, found[name], images, found["features"] if name == "diversity" else "") for name in GUARDS]
        rows += [(task, other["mean"], other["images"], other["scorer"]) for task, other in cross.items()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the guards of a checkpoint ({error!r}); {remedy}") from None
    for name, value, *_ in rows:
        if value is None and name == "diversity":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path}: `{name}` is {value!r}, not a finite number; {remedy}")
    return rows


def final(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `scores` that belong to final checkpoints."""
    last = {
        (task, method): layout.epochs(config, task, method)[-1] for task in config.tasks for method in methods(config, task)
    }
    return scores[scores["step"] == pd.MultiIndex.from_frame(scores[["task", "method"]]).map(last)]


def run_metrics(config: Config, task: str, method: str, seed: int) -> pd.DataFrame:
    """metrics.jsonl of a training: its keys and task, method, seed, seconds (sum of its parts). Raises InputError."""
    epochs, run = run_settings(config, task, method).training.epochs, layout.run(config, task, method, seed)
    remedy = f"run `star train --task {task} --method {method} --seed {seed} --out {run.folder}`"
    path = run.metrics
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    frame = pd.DataFrame(read_jsonl(path))
    for key in _METRIC_KEYS:
        if key not in frame or not pd.api.types.is_numeric_dtype(frame[key]) or frame[key].isna().any():
            raise InputError(f"{path}: `{key}` is not a number in every line; {remedy}")
    frame = frame[frame["epoch"] <= epochs]
    if frame["epoch"].tolist() != list(range(1, epochs + 1)):
        raise InputError(f"{path}: {len(frame)} of {epochs} epochs; {remedy}, which continues it")
    return frame.assign(task=task, method=method, seed=seed, seconds=frame[_PARTS].sum(axis=1))


def metrics(config: Config) -> pd.DataFrame:
    """metrics.jsonl of every training: its keys and task, method, seed; one row an epoch. Raises InputError."""
    runs = [(task, method, seed) for task in config.tasks for method in methods_of(config, task) for seed in config.seeds]
    return pd.concat([run_metrics(config, *run) for run in runs], ignore_index=True)


def sample_grid(config: Config, final: pd.DataFrame, prompts: int = 3) -> pd.DataFrame:
    """The rows of `final` to show as pictures, with their path in the column `picture`. Raises InputError.

    Sample 0 of the first seed, for `prompts` prompts a task that lie evenly in the test set ordered by tag and id: no
    choice by score.
    """
    chosen = []
    for task in config.tasks:
        rows = final[(final["task"] == task) & (final["seed"] == config.seeds[0])]
        rows = rows[rows["sample"] == rows["sample"].min()]
        ids = rows.drop_duplicates("prompt_id").sort_values(["tag", "prompt_id"])["prompt_id"].tolist()
        wanted = [ids[int((i + 0.5) * len(ids) / prompts)] for i in range(min(prompts, len(ids)))]
        chosen += [rows[rows["prompt_id"] == prompt] for prompt in wanted]
    shown = pd.concat(chosen, ignore_index=True)
    shown["picture"] = [layout.run(config, r.task, r.method, r.seed).samples(r.step) / r.filename for r in shown.itertuples()]
    for picture in shown["picture"]:
        if not picture.is_file():
            folder = picture.parents[2]
            raise InputError(f"{picture}: no such picture; run `star sample --out {folder}` with the run's adapter")
    return shown
