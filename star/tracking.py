"""MLflow as a mirror: metrics.jsonl, scores and checkpoints are the source of truth, and can be replayed at any time.

A run is found by its tag `star.key`. Mirroring again adds what is new and nothing twice; where MLflow holds what the files
no longer say (the run was trained or scored again), its run is deleted and replayed. Every access to the database
holds one file lock, so that any number of processes may mirror at once.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from star.analysis.results import read_guards, read_scores
from star.analysis.statistics import by_tag, overall
from star.config import Config, main_scorer, run_settings
from star.config.key import training_key
from star.errors import InputError
from star.files import read_jsonl
from star.layout import Run, epoch_of
from star.runtime import revision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits
_ABOUT_TASK = """Task `{task}` of the configuration `{experiment}`: one run a method and seed, `test/{task}` is the \
test score by epoch.

`base` is the untrained model. To compare methods select their runs and press *Compare*, or group the \
charts by the tag `method`:
- `test/{task}` is the score on the test prompts by epoch (step 0: untrained), `test/{task}/<tag>` the same for one tag;
- `guard/...` are collapse guards on the same pictures: diversity within a prompt, edge density, colour entropy, other scorers;
- `reward_mean` is the mean reward of the images sampled for training, `kl` the distance from the untrained model;
- the tags `task`, `method`, `seed` and `configuration` filter and group runs (`tags.method = "star"`), charts group by them;
- parameters that differ between two methods are what the method is; all others are equal by construction.

Intervals and paired differences are in the experiment `{experiment}-tables`."""
_ABOUT_RUN = """`{method}` on `{task}`, seed {seed}, of the configuration `{experiment}`. {what}

`settings.json` holds the resolved settings, `adapter/` the trained LoRA (EMA weights; `pipe.load_lora_weights`), `maps/`
pictures of the allocation maps where they were drawn. Times of the metrics are times of the training, from its start."""
_ABOUT_TABLES = (
    "Tables and figures of the experiment `{experiment}`: all tasks and methods, with intervals and paired differences."
)


def mirror(config: Config, task: str, method: str, seed: int, run: Path, finished: bool = True) -> str:
    """Bring the MLflow run of one training, or of `base`, up to date with its folder; returns the MLflow run id.

    Reads metrics.jsonl (not for `base`), scores/epoch<n>.jsonl, guards/epoch<n>.json, maps/* and, when `finished`, the
    adapter of the last checkpoint, all in `run`; writes <results>/mlflow.db and <results>/mlartifacts/. While training goes
    on call it with `finished=False`: the run's status is then RUNNING. Raises InputError when metrics or adapter are missing.
    """
    run = Path(run)
    settings = run_settings(config, task, method)
    rows = _training_rows(run, method)
    # the UI draws first what was logged first
    values = _test_values(run, task, main_scorer(config, task)) | _training_values(rows)
    adapter = Run(run).adapter(settings.training.epochs)
    if finished and method != "base" and not adapter.is_dir():
        raise InputError(f"{adapter}: no such folder; finish the training with `star train --out {run}`")
    key = f"{config.experiment}/{task}/{method}/seed{seed}/{training_key(settings)}"
    tags = {
        "task": task,
        "method": method,
        "seed": str(seed),
        "configuration": config.experiment,
        "config_hash": training_key(settings),
        **_precision(run),
        **_revision(),
        "mlflow.note.content": _ABOUT_RUN.format(
            task=task, method=method, seed=seed, experiment=config.experiment, what=_what(config, method)
        ),
    }
    about = _ABOUT_TASK.format(experiment=config.experiment, task=task)
    seconds = _seconds(rows)
    with _client(config) as client:
        experiment = _experiment(client, config, f"{config.experiment}-{task}", about)
        params = _flat(settings.model_dump(mode="json"))
        found = _find(client, experiment, key)
        logged = _logged(client, found) if found else {}
        if found and any(values.get(at) != value for at, value in logged.items()):
            client.delete_run(found.info.run_id)
            found, logged = None, {}
        if found is None:
            start = int(1000 * (time.time() - sum(seconds)))
            found = client.create_run(experiment, start, tags | {"star.key": key}, run_name=f"{method}-seed{seed}")
        run_id = found.info.run_id
        new = {at: value for at, value in values.items() if at not in logged}
        _log(client, found, params, new, tags, seconds)
        client.log_dict(run_id, settings.model_dump(mode="json"), "settings.json")
        if (run / "maps").is_dir():
            client.log_artifacts(run_id, str(run / "maps"), "maps")
        if finished and method != "base":
            client.log_artifacts(run_id, str(adapter), "adapter")
        if finished:
            client.set_terminated(run_id, "FINISHED", found.info.start_time + int(1000 * sum(seconds)))
        else:
            client.update_run(run_id, status="RUNNING")
    return run_id


def mirror_tables(config: Config) -> str:
    """Log <results>/<experiment>/{tables,figures} as artifacts of one run; returns the MLflow run id. Raises InputError."""
    source = Path(config.results) / config.experiment
    for name in ("tables", "figures"):
        if not (source / name).is_dir():
            raise InputError(f"{source / name}: no such folder; run `star tables --out {source}`")
    about = _ABOUT_TABLES.format(experiment=config.experiment)
    key = f"{config.experiment}/tables"
    with _client(config) as client:
        experiment = _experiment(client, config, f"{config.experiment}-tables", about)
        tags = {"star.key": key, "mlflow.note.content": about}
        found = _find(client, experiment, key) or client.create_run(experiment, tags=tags, run_name="tables")
        for name in ("tables", "figures"):
            client.log_artifacts(found.info.run_id, str(source / name), name)
        client.set_terminated(found.info.run_id, "FINISHED")
    return found.info.run_id


@contextmanager
def _client(config: Config) -> Iterator["MlflowClient"]:
    """An MLflow client on <results>/mlflow.db, held alone: creating its schema and writing exclude other processes."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    from filelock import FileLock
    from mlflow import MlflowClient

    for talkative in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    results = Path(config.results).resolve()
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(results / "mlflow.lock"):
        yield MlflowClient(f"sqlite:///{results / 'mlflow.db'}")


def _experiment(client: "MlflowClient", config: Config, name: str, about: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        artifacts = (Path(config.results).resolve() / "mlartifacts" / name).as_uri()
        return client.create_experiment(name, artifacts, {"mlflow.note.content": about})
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _find(client: "MlflowClient", experiment: str, key: str) -> "Run | None":
    runs = client.search_runs([experiment], f"tags.`star.key` = '{key}'")
    return runs[0] if runs else None


def _logged(client: "MlflowClient", found: "Run") -> dict[tuple[str, int], float]:
    """(metric, step) -> value of everything that the run holds."""
    histories = (client.get_metric_history(found.info.run_id, key) for key in found.data.metrics)
    return {(m.key, m.step): m.value for history in histories for m in history}


def _log(
    client: "MlflowClient",
    found: "Run",
    params: dict[str, str],
    values: dict[tuple[str, int], float],
    tags: dict[str, str],
    seconds: list[float],
) -> None:
    """Log tags, the params that the run `found` does not hold yet, and the metric values, at their time of training."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, start = found.info.run_id, found.info.start_time
    metrics = [Metric(key, value, start + int(1000 * sum(seconds[:step])), step) for (key, step), value in values.items()]
    missing = [Param(key, value) for key, value in params.items() if key not in found.data.params]
    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
    for first in range(0, len(missing), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=missing[first : first + _PARAMS_A_BATCH])
    for first in range(0, len(metrics), _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + _METRICS_A_BATCH])


def _training_rows(run: Path, method: str) -> list[dict]:
    if method == "base":
        return []
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; train first with `star train --out {run}`")
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if row.get("epoch") != number:
            raise InputError(f"{path}:{number}: epoch {row.get('epoch')!r} where {number} belongs; rerun `star train`")
    return rows


def _what(config: Config, method: str) -> str:
    """What the configuration says of a method, in one sentence."""
    if method == "base":
        return "The untrained model: test scores and guards at step 0, no training curves."
    changes = config.methods[method].model_dump(exclude={"tasks"}, exclude_defaults=True)
    said = [f"`{key} = {value}`" for key, value in _flat(changes).items()]
    return f"What makes it `{method}`: {', '.join(said)}; everything else is as in the other methods." if said else ""


def _seconds(rows: list[dict]) -> list[float]:
    """Seconds of every epoch: the sum of its parts."""
    return [sum(value for key, value in row.items() if key.startswith("seconds_")) for row in rows]


def _training_values(rows: list[dict]) -> dict[tuple[str, int], float]:
    """(metric, epoch) -> value. Nulls and non-finite numbers, which MLflow cannot draw, stay in metrics.jsonl only."""
    return {
        (key, row["epoch"]): float(value)
        for row in rows
        for key, value in row.items()
        if key != "epoch" and isinstance(value, int | float) and math.isfinite(value)
    }


def _test_values(run: Path, task: str, scorer: str) -> dict[tuple[str, int], float]:
    """(metric, step) -> value of every checkpoint: test/<task>, test/<task>/<tag> where tags are averaged; guard/<guard>.

    Of other reported scorers test/<task>/<scorer>.
    """
    values = {}
    for path in sorted((run / "scores").glob("epoch*.jsonl")):
        step, scores = epoch_of(path), read_scores(path)
        if other := path.stem.partition(".")[2]:
            values[f"test/{task}/{other}", step] = overall(other, scores)
            continue
        values[f"test/{task}", step] = overall(scorer, scores)
        if by_tag(scorer):
            for tag, mean in scores.groupby("tag")["score"].mean().items():
                values[f"test/{task}/{tag}", step] = float(mean)
        summary = path.with_suffix(".summary.json")
        if summary.is_file():
            for key, value in json.loads(summary.read_text()).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    values[f"test/{key}", step] = float(value)
    for path in sorted((run / "guards").glob("epoch*.json")):
        for guard, value, *_ in read_guards(path):
            if value is not None:
                values[f"guard/{guard}", epoch_of(path)] = float(value)
    return values


def _flat(settings: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` -> text."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _precision(run: Path) -> dict[str, str]:
    """What `policy.precision` came to in a training, as a tag; nothing for `base`."""
    file = run / "environment.json"
    known = json.loads(file.read_text()).get("precision") if file.exists() else None  # older versions did not write it
    return {"precision": known.removeprefix("torch.")} if known else {}


def _revision() -> dict[str, str]:
    """The git revision of this package as tags; none where it was installed without git."""
    found = revision()
    return {"git_revision": found, "mlflow.source.git.commit": found.removesuffix("-dirty")} if found else {}
