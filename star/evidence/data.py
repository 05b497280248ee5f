"""Finished runs kept small enough for the repository: one gzipped JSON file a run, from which the evidence is made anew.

A file says which settings, base model, scorers and machine it comes from, and holds the scores of every image of every
checkpoint (on geneval also what is wrong with it), the collapse guards and the learning curve. Numbers keep seven digits.
Equal runs give equal bytes.
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from star.analysis import results
from star.config import Config, run_settings
from star.errors import InputError
from star.evidence.questions import ATTRIBUTE_METHODS, asks_about_attributes, require
from star.scoring.rules import failure

_SCORES = ["step", "prompt_id", "sample", "tag", "prompt", "scorer", "score"]
_GUARDS = ["step", "guard", "value", "images", "by"]
_RUN = ["task", "method", "seed"]
_PARTS = ("scores", "guards", "metrics", "attributes", "maps")


class Data(NamedTuple):
    """What was measured: `config` has only the tasks, methods and seeds that are there, `asked` all of them.

    `machines` by (task, method, seed); `attributes` are scores and map statistics on prompts of global attributes, or None.
    """

    asked: Config
    config: Config
    scores: pd.DataFrame
    guards: pd.DataFrame
    metrics: pd.DataFrame
    machines: dict[tuple[str, str, int], dict]
    attributes: tuple[pd.DataFrame, pd.DataFrame] | None


def runs(config: Config) -> list[tuple[str, str, int]]:
    """(task, method, seed) of everything that a configuration asks for, the untrained model included."""
    return [(t, m, seed) for t in config.tasks for m in results.methods(config, t) for seed in config.seeds]


def file_of(folder: Path, task: str, method: str, seed: int) -> Path:
    """Where `folder` keeps a run."""
    return folder / f"{task}-{method}-seed{seed}.json.gz"


def _needs(config: Config, task: str, method: str, seed: int) -> list[Path]:
    """The files that a finished run has."""
    run, steps = results.run_folder(config, task, method, seed), results.steps(config, task, method)
    files = [
        run / f"{part}.{end}"
        for step in steps
        for part, end in ((f"scores/step{step}", "jsonl"), (f"guards/step{step}", "json"))
    ]
    if method != "base":
        files += [run / "settings.json", run / "environment.json", run / "metrics.jsonl", run / "trained.sha256"]
    if _looks_at_attributes(config, task, method):
        files += [run / "global/scores.jsonl"] + [run / "global/map_statistics.csv"] * (method == "star")
    return files


def _looks_at_attributes(config: Config, task: str, method: str) -> bool:
    return asks_about_attributes(config) and task == "pickscore" and method in ATTRIBUTE_METHODS


def collect(config: Config, folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the finished runs of <results>/<experiment> to `folder`; returns (files written, first missing file of the others).

    Files of runs that are not here stay: those of several machines come together. Raises InputError when a run was
    trained with other settings than `config` has, or when `folder` holds the same run of other settings or another base model.
    """
    from star.models.sd3 import weights_digest

    base, written, missing = weights_digest(config.policy), [], []
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs(config):
        absent = [path for path in _needs(config, *run) if not path.is_file()]
        if absent:
            missing.append(absent[0])
            continue
        made, path = _collected(config, base, *run), file_of(folder, *run)
        if path.exists():
            _same_source(path, _load(path), made)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(gzip.compress(json.dumps(made, separators=(",", ":")).encode(), mtime=0))
        unfinished.replace(path)
        written.append(path)
    return written, missing


def _source(config: Config, task: str, method: str) -> dict:
    """What two files of the same run must have in common."""
    settings = run_settings(config, task, method)
    return {
        "settings": settings.digest(),
        "steps": results.steps(config, task, method),
        "evaluation": settings.evaluation.model_dump(exclude={"batch"}),
    }


def _same_source(path: Path, found: dict, wanted: dict) -> None:
    for key in ("settings", "steps", "evaluation", "base"):
        if key in wanted and found.get(key) != wanted[key]:
            raise InputError(
                f"{path}: of a run with other `{key}` ({found.get(key)}, here {wanted[key]}), which no table may mix; delete "
                "the file and collect the run again, or use its configuration and base model"
            )


def _collected(config: Config, base: str, task: str, method: str, seed: int) -> dict[str, Any]:
    run = results.run_folder(config, task, method, seed)
    scores = pd.concat(results.run_scores(config, task, method, seed).values(), ignore_index=True)
    made = {"task": task, "method": method, "seed": seed, **_source(config, task, method), "base": base}
    if task == "geneval" and "reason" not in scores:
        raise InputError(f"{run}/scores: images without `reason`; score them again with `star score`")
    wrong = {"failure": scores["reason"].map(failure)} if task == "geneval" else {}
    made |= {"scores": _columns(scores[_SCORES].assign(**wrong)), "guards": _columns(results.guards(config, scores)[_GUARDS])}
    if method != "base":
        trained = json.loads((run / "settings.json").read_text())
        wanted = run_settings(config, task, method).model_dump(mode="json")
        for section in ("rollout", "training", "allocation", "reward", "policy"):
            if trained[section] != wanted[section]:
                raise InputError(
                    f"{run}/settings.json: `{section}` differs from the configuration's; train again, or use that one"
                )
        made["environment"] = json.loads((run / "environment.json").read_text())
        made["metrics"] = _columns(results.run_metrics(config, task, method, seed).drop(columns=_RUN).dropna(axis=1, how="all"))
    if _looks_at_attributes(config, task, method):
        made["attributes"] = _columns(results.read_scores(run / "global/scores.jsonl").drop(columns="filename"))
        if method == "star":
            made["maps"] = _columns(pd.read_csv(run / "global/map_statistics.csv"))
    return made


def _columns(frame: pd.DataFrame) -> dict[str, list]:
    """A frame as columns; floats with seven digits, null for nan."""

    def short(value: object) -> object:
        return value if not isinstance(value, float) else None if value != value else float(f"{value:.7g}")

    return {name: [short(v) for v in column.tolist()] for name, column in frame.items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); get it from git again, or collect the run again") from None


def read(config: Config, folder: Path) -> Data:
    """What `folder` holds of a configuration. A method counts on a task where at least two seeds of it are there.

    Raises InputError when a file is damaged, was made with other settings, scorers or prompts, when the untrained model of a
    seed is missing, and when no method has two seeds.
    """
    there: dict[tuple[str, str], list[int]] = {}
    for task, method, seed in runs(config):
        if file_of(folder, task, method, seed).is_file():
            there.setdefault((task, method), []).append(seed)
    there = {of: seeds for of, seeds in there.items() if len(seeds) > 1}
    if not there:
        raise InputError(
            f"{folder}: no method of `{config.experiment}` with two seeds in it; finish more runs, and collect them with "
            f"`star evidence --collect --data {folder}`"
        )
    measured = _narrowed(config, there)
    frames: dict[str, list[pd.DataFrame]] = {part: [] for part in _PARTS}
    machines, first, base, precisions = {}, {}, {}, {}
    for (task, method), seeds in there.items():
        for seed in seeds if task in measured.tasks else ():
            path, untrained = file_of(folder, task, method, seed), file_of(folder, task, "base", seed)
            if not untrained.is_file():
                raise InputError(
                    f"{untrained}: no such file, and {path.name} is compared with it; collect the untrained model's scores"
                )
            made = _load(path)
            _same_source(path, made, _source(config, task, method) | base)
            if task == "geneval" and "failure" not in made["scores"]:
                raise InputError(f"{path}: of an older version, without what is wrong with its images; collect the run again")
            base, machines[task, method, seed] = {"base": made["base"]}, made.get("environment")
            if precision := (made.get("environment") or {}).get("precision"):
                precisions.setdefault(precision, path)
            for part in _PARTS:
                if part in made:
                    frames[part].append(pd.DataFrame(made[part]).assign(task=task, method=method, seed=seed))
            for _, of_step in frames["scores"][-1].groupby("step"):
                results.comparable(*first.setdefault(task, (path, of_step)), path, of_step)
    if len(precisions) > 1:
        described = " and ".join(f"{path} in {precision}" for precision, path in precisions.items())
        raise InputError(f"{described}: no table may mix them; name policy.precision, and train again what differs")
    joined = {part: pd.concat(found, ignore_index=True) for part, found in frames.items() if found}
    _one_measure(folder, joined["guards"])
    return Data(config, measured, joined["scores"], joined["guards"], joined["metrics"], machines, _attributes(joined))


def _narrowed(config: Config, there: dict[tuple[str, str], list[int]]) -> Config:
    """The configuration with the tasks, methods and seeds that are there, in its order. Raises InputError when nothing is."""
    tasks_of = {name: [task for task in config.tasks if (task, name) in there] for name in config.methods}
    methods = {name: m.model_copy(update={"tasks": tasks_of[name]}) for name, m in config.methods.items() if tasks_of[name]}
    tasks = {task: config.tasks[task] for task in config.tasks if any(task in tasks_of[name] for name in methods)}
    seeds = [seed for seed in config.seeds if any(seed in of for (_, name), of in there.items() if name in methods)]
    measured = config.model_copy(update={"tasks": tasks, "methods": methods, "seeds": seeds})
    require(measured)
    return measured


def _one_measure(folder: Path, guards: pd.DataFrame) -> None:
    for (task, guard), rows in guards.groupby(["task", "guard"]):
        if rows["by"].nunique() > 1:
            a, b, *_ = rows["by"].unique()
            raise InputError(
                f"{folder}: `{guard}` of {task} was measured by different models (`{a}`, `{b}`); collect runs of one again"
            )


def _attributes(joined: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """(scores, map statistics) on prompts of global attributes, of the seeds under which all methods have them."""
    if not {"attributes", "maps"} <= set(joined):
        return None
    scores, maps = joined["attributes"], joined["maps"]
    of_method = scores.groupby("seed")["method"].nunique()
    seeds = set(of_method[of_method == len(ATTRIBUTE_METHODS)].index) & set(maps["seed"])
    return (scores[scores["seed"].isin(seeds)], maps[maps["seed"].isin(seeds)]) if len(seeds) > 1 else None
