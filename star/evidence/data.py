"""Finished runs kept small enough for the repository: one gzipped JSON file a run, from which the evidence is made anew.

A file says of which settings, code, base model, scorers and machine it comes, and holds the scores of every image of every
tested epoch (with what is wrong with it, where the scorer says so), the collapse guards and the learning curve. Numbers keep
seven digits. Equal runs give equal bytes.
"""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError

from star import code, layout
from star.analysis import results
from star.config import Config, RunSettings, run_settings
from star.config.key import prompts_key, sampling_key, scoring_key, training_key, weights_digest
from star.errors import InputError
from star.evidence.questions import ATTRIBUTE_METHODS, looks_at_attributes, require
from star.files import write_bytes
from star.scoring.rules import failure

RunName = tuple[str, str, int]  # task, method, seed
_SCORES = ["epoch", "metric", "prompt_id", "sample", "tag", "prompt", "scorer", "score"]
_GUARDS = ["epoch", "guard", "value", "images", "by"]
_FRAMES = ("scores", "guards", "metrics", "attributes", "maps")


class Data(NamedTuple):
    """What was measured: `config` has only the tasks, methods and seeds that are there, `asked` all of them.

    `machines` by (task, method, seed); `attributes` are scores and map statistics on prompts of global attributes, or None.
    """

    asked: Config
    config: Config
    scores: pd.DataFrame
    guards: pd.DataFrame
    metrics: pd.DataFrame
    machines: dict[RunName, dict]
    attributes: tuple[pd.DataFrame, pd.DataFrame] | None


def file_of(folder: Path, run: RunName) -> Path:
    """Where `folder` keeps a run."""
    task, method, seed = run
    return folder / f"{task}-{method}-seed{seed}.json.gz"


# Collecting.


def collect(config: Config, folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the finished runs of <results>/<experiment> to `folder`; returns (files written, first missing file of the others).

    Files of runs that are not here stay: those of several machines come together. Raises InputError when a run was trained with
    other settings than `config` has, or by several versions of the code, or when `folder` holds the same run of other settings
    or another base model.
    """
    base, written, missing = weights_digest(config.policy.model, config.policy.revision), [], []
    for run in layout.runs(config):
        absent = [path for path in _needed_files(config, run) if not path.is_file()]
        if absent:
            missing.append(absent[0])
            continue
        collected, path = _collected(config, run) | {"base": base}, file_of(folder, run)
        if path.exists():
            _refuse_other_source(path, _load(path), _source(config, run) | {"base": base})
        content = json.dumps(collected, separators=(",", ":")).encode()
        write_bytes(path, gzip.compress(content, mtime=0))
        written.append(path)
    return written, missing


def _needed_files(config: Config, name: RunName) -> list[Path]:
    """The files that a finished run has."""
    task, method, _ = name
    run, epochs = layout.run(config, *name), layout.epochs(config, task, method)
    files = [file for epoch in epochs for file in (run.scores(epoch), run.guards(epoch))] + _sampled_by(config, name)
    if method != "base":
        files += [run.settings, run.environment, run.metrics, run.trained, run.folder / code.FILE]
    if looks_at_attributes(config, task, method):
        files.append(run.attributes / "scores.jsonl")
        if method == "star":
            files.append(run.attributes / "map_statistics.csv")
    return files


def _sampled_by(config: Config, name: RunName) -> list[Path]:
    """The files that say which code drew the pictures of a run."""
    task, method, _ = name
    run = layout.run(config, *name)
    folders = [run.samples(epoch) for epoch in layout.epochs(config, task, method)]
    if looks_at_attributes(config, task, method):
        folders.append(run.attributes / "samples")
    return [folder / code.FILE for folder in folders]


def _source(config: Config, run: RunName) -> dict[str, Any]:
    """What two files of the same run must have in common."""
    task, method, _ = run
    settings = run_settings(config, task, method)
    source = {
        "sampling": sampling_key(settings),
        "scoring": {scorer: scoring_key(settings, scorer) for scorer in settings.report},
        "prompts": prompts_key(settings, settings.evaluation.split),
        "epochs": layout.epochs(config, task, method),
    }
    return source if method == "base" else source | {"training": training_key(settings)}


def _refuse_other_source(path: Path, collected: dict, source: dict) -> None:
    for key, wanted in source.items():
        if collected.get(key) != wanted:
            raise InputError(
                f"{path}: of a run with other `{key}` ({collected.get(key)}, here {wanted}), which no table may mix; delete "
                "the file and collect the run again, or use its configuration and base model"
            )


def _collected(config: Config, name: RunName) -> dict[str, Any]:
    task, method, seed = name
    run = layout.run(config, *name)
    scores = pd.concat(results.run_scores(config, *name).values(), ignore_index=True)
    reasons = {"failure": scores["reason"].map(failure, na_action="ignore")} if "reason" in scores else {}
    collected = {"task": task, "method": method, "seed": seed, **_source(config, name)}
    collected["code"] = {"sampling": _one_code(_sampled_by(config, name))}
    collected["scores"] = _columns(scores[_SCORES].assign(**reasons))
    collected["guards"] = _columns(results.guards(config, scores)[_GUARDS])
    if method != "base":
        _refuse_other_settings(config, name)
        metrics = results.run_metrics(config, *name).drop(columns=results.RUN)
        collected["code"]["training"] = _one_code([run.folder / code.FILE])
        collected["environment"] = json.loads(run.environment.read_text(encoding="utf-8"))
        collected["metrics"] = _columns(metrics.dropna(axis=1, how="all"))
    if looks_at_attributes(config, task, method):
        collected["attributes"] = _columns(results.read_scores(run.attributes / "scores.jsonl").drop(columns="filename"))
        if method == "star":
            collected["maps"] = _columns(pd.read_csv(run.attributes / "map_statistics.csv"))
    return collected


def _one_code(files: list[Path]) -> str:
    """The digest of the code that made what lies beside all of these files. Raises InputError where it is not one."""
    first: dict[str, Path] = {}
    for file in files:
        for digest in file.read_text(encoding="utf-8").split():
            first.setdefault(digest, file)
    if len(first) != 1:
        raise InputError(f"{_described(first)}: made by several versions of the code; make the run again with one of them")
    return next(iter(first))


def _described(path_of: dict[str, Path]) -> str:
    return " and ".join(f"{path} ({value})" for value, path in path_of.items())


def _refuse_other_settings(config: Config, name: RunName) -> None:
    """Raise InputError when a training had other settings than the configuration."""
    task, method, _ = name
    file = layout.run(config, *name).settings
    wanted = run_settings(config, task, method)
    try:
        trained = RunSettings.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError:
        raise InputError(f"{file}: not the settings of a training of this version; train again") from None
    if training_key(trained) != training_key(wanted):
        differing = [section for section in RunSettings.model_fields if getattr(trained, section) != getattr(wanted, section)]
        raise InputError(
            f"{file}: other settings than the configuration's ({', '.join(differing)}); train again, or use that one"
        )


def _columns(frame: pd.DataFrame) -> dict[str, list]:
    """A frame as columns; floats with seven digits, null for nan."""
    return {name: [_short(value) for value in column.tolist()] for name, column in frame.items()}


def _short(value: object) -> object:
    if not isinstance(value, float):
        return value
    return None if value != value else float(f"{value:.7g}")


# Reading.


def read(config: Config, folder: Path) -> Data:
    """What `folder` holds of a configuration. A method counts on a task where at least two seeds of it are there.

    Raises InputError when a file is damaged, when files are of other settings, code, scorers or prompts than the configuration
    or each other, when the untrained model of a seed is missing, and when no method has two seeds.
    """
    seeds_of = _seeds_there(config, folder)
    measured = _narrowed(config, seeds_of)
    runs = [(task, method, seed) for (task, method), seeds in seeds_of.items() if task in measured.tasks for seed in seeds]
    # Load, and refuse what is not of this configuration or not of the same making as the rest.
    loaded = {run: _loaded(config, folder, run) for run in runs}
    _refuse_mixtures({file_of(folder, run): content for run, content in loaded.items()})
    # Join.
    frames: dict[str, list[pd.DataFrame]] = {part: [] for part in _FRAMES}
    for run, content in loaded.items():
        for part in frames:
            if part in content:
                frames[part].append(pd.DataFrame(content[part]).assign(**dict(zip(results.RUN, run, strict=True))))
    _refuse_other_scores([file_of(folder, run) for run in runs], frames["scores"])
    joined = {part: pd.concat(of_part, ignore_index=True) for part, of_part in frames.items() if of_part}
    _refuse_other_guards(folder, joined["guards"])
    machines = {run: content.get("environment") for run, content in loaded.items()}
    return Data(config, measured, joined["scores"], joined["guards"], joined["metrics"], machines, _attributes(joined))


def _seeds_there(config: Config, folder: Path) -> dict[tuple[str, str], list[int]]:
    """The seeds of every (task, method) that has two of them in `folder`. Raises InputError when none has."""
    seeds_of: dict[tuple[str, str], list[int]] = {}
    for task, method, seed in layout.runs(config):
        if file_of(folder, (task, method, seed)).is_file():
            seeds_of.setdefault((task, method), []).append(seed)
    seeds_of = {run: seeds for run, seeds in seeds_of.items() if len(seeds) > 1}
    if not seeds_of:
        raise InputError(
            f"{folder}: no method of `{config.experiment}` with two seeds in it; finish more runs, and collect them with "
            f"`star evidence --collect --data {folder}`"
        )
    return seeds_of


def _narrowed(config: Config, seeds_of: dict[tuple[str, str], list[int]]) -> Config:
    """The configuration with the tasks, methods and seeds that are there, in its order. Raises InputError when nothing is."""
    tasks_of = {name: [task for task in config.tasks if (task, name) in seeds_of] for name in config.methods}
    methods = {
        name: method.model_copy(update={"tasks": tasks_of[name]}) for name, method in config.methods.items() if tasks_of[name]
    }
    tasks = {task: settings for task, settings in config.tasks.items() if any(task in tasks_of[name] for name in methods)}
    trained = {seed for (_, name), seeds in seeds_of.items() if name in methods for seed in seeds}
    seeds = [seed for seed in config.seeds if seed in trained]
    measured = config.model_copy(update={"tasks": tasks, "methods": methods, "seeds": seeds})
    require(measured)
    return measured


def _loaded(config: Config, folder: Path, run: RunName) -> dict[str, Any]:
    """A run's file. Raises InputError when it is damaged or of another configuration, or the untrained model's is missing."""
    task, _, seed = run
    path, untrained = file_of(folder, run), file_of(folder, (task, "base", seed))
    if not untrained.is_file():
        raise InputError(
            f"{untrained}: no such file, and {path.name} is compared with it; collect the untrained model's scores"
        )
    content = _load(path)
    _refuse_other_source(path, content, _source(config, run))
    return content


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); get it from git again, or collect the run again") from None


def _refuse_mixtures(files: dict[Path, dict]) -> None:
    """Raise InputError when runs are of several base models, versions of the code or precisions."""
    remedies = {
        "base": "keep the files of one base model",
        "training code": "train with one version of the code",
        "sampling code": "sample with one version of the code",
        "precision": "name policy.precision, and train again what differs",
    }
    first: dict[str, dict[str, Path]] = {what: {} for what in remedies}
    for path, content in files.items():
        made_by = {
            "base": content["base"],
            "training code": content["code"].get("training"),
            "sampling code": content["code"]["sampling"],
            "precision": (content.get("environment") or {}).get("precision"),
        }
        for what, value in made_by.items():
            if value is not None:
                first[what].setdefault(value, path)
    for what, path_of in first.items():
        if len(path_of) > 1:
            raise InputError(f"{_described(path_of)}: of different {what}, which no table may mix; {remedies[what]}")


def _refuse_other_scores(paths: list[Path], frames: list[pd.DataFrame]) -> None:
    """Raise InputError when scores of a task are of other scorers, prompts or samples, or say less than others."""
    first: dict[tuple[str, str], tuple[Path, pd.DataFrame]] = {}
    for path, scores in zip(paths, frames, strict=True):
        for (task, metric, _), of_epoch in scores.groupby(["task", "metric", "epoch"]):
            first_path, other = first.setdefault((task, metric), (path, of_epoch))
            if set(other) != set(of_epoch):
                raise InputError(f"{first_path} and {path}: one says what is wrong with its images; collect both runs again")
            results.comparable(first_path, other, path, of_epoch)


def _refuse_other_guards(folder: Path, guards: pd.DataFrame) -> None:
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
    methods = scores.groupby("seed")["method"].nunique()
    seeds = set(methods[methods == len(ATTRIBUTE_METHODS)].index) & set(maps["seed"])
    if len(seeds) < 2:
        return None
    return scores[scores["seed"].isin(seeds)], maps[maps["seed"].isin(seeds)]
