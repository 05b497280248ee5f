"""MLflow as a mirror: metrics.jsonl, scores and checkpoints are the source of truth, and can be replayed at any time.

A run is found by its tag `star.key`. Mirroring again adds what is new and nothing twice; where MLflow holds what the files
no longer say (the run was trained or scored again), its run is deleted and replayed. Seconds and memory are exempt: epochs that
a resumed training did again keep those of the first time.

MLflow's pages sort charts by name: `test/` comes first, then `tracked/` with the pictures, `training/` and, last, `watch/`.
"""

import json
import math
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star.analysis.results import read_guards, read_scores
from star.analysis.statistics import by_tag, overall
from star.config import Config, main_scorer, run_settings
from star.config.key import training_key
from star.errors import InputError
from star.layout import Run, epoch_of
from star.runtime import revision
from star.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

Values = dict[tuple[str, int], float]  # (metric, step) -> value

_PICTURES, _NEWEST, _NOTE = "tracked/pictures", "pictures.png", "mlflow.note.content"
_MEASURED = ("training/seconds_", "training/peak_memory_bytes", "system/")  # what no two tries at an epoch have in common
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits
_ABOUT_TASK = """Task `{task}` of the configuration `{experiment}`: one run a method and seed, `test/{task}` is the \
test score by epoch.

`base` is the untrained model. To compare methods select their runs and press *Compare*, or group the \
charts by the tag `method`:
- `test/{task}` is the score on the test prompts by epoch (step 0: untrained), `test/{task}/<tag>` the same for one tag;
- `tracked/pictures` are pictures of a few fixed validation prompts, `tracked/...` what is measured on them;
- `training/reward_mean` is the mean reward of the images sampled for training, `training/kl` the distance from `base`;
- `watch/...` are collapse guards on the test pictures: diversity within a prompt, edge density, colour entropy, other scorers;
- the tags `task`, `method`, `seed` and `configuration` filter and group runs (`tags.method = "star"`), charts group by them;
- parameters that differ between two methods are what the method is; all others are equal by construction.

Intervals and paired differences are in the experiment `{experiment}-tables`."""
_ABOUT_RUN = """`{method}` on `{task}`, seed {seed}, of the configuration `{experiment}`. {what}

`images/` are pictures of fixed prompts by epoch. `settings.json` holds the resolved settings, `adapter/` the trained LoRA
(EMA weights; `pipe.load_lora_weights`), `maps/` pictures of the allocation maps where they were drawn. Times of the metrics are
times of the training, from its start."""
_ABOUT_CREDIT = (
    "How well one batch's gradient points along the true gradient, under every allocation of `{experiment}`: one run a task. "
    "Metrics are `<estimate>/<step weights>/<allocation>`; intervals are in the table `credit.md` among the artifacts."
)
_CREDIT = ("efficiency", "cosine", "signal", "noise", "gain")  # columns of credit.csv
_ABOUT_TABLES = (
    "Tables and figures of the experiment `{experiment}`: all tasks and methods, with intervals and paired differences."
)


def mirror(config: Config, task: str, method: str, seed: int, run: Path, finished: bool = True) -> str:
    """Bring the MLflow run of one training, or of `base`, up to date with its folder; returns the MLflow run id.

    Reads metrics.jsonl (not for `base`), system.jsonl, scores/, guards/, pictures/ and, when `finished`, maps/ and the last
    adapter, all in `run`. While training goes on call it with `finished=False`: the run's status is then RUNNING.
    Raises InputError when metrics or adapter are missing.
    """
    copy = Mirror(config, task, method, seed=seed, run=run)
    with store.client(config) as client:
        copy.update(client)
        if finished:
            copy.finish(client)
    return copy.run_id


class Mirror:
    """The MLflow run of one folder, to be brought up to date again and again; remembers what MLflow holds."""

    def __init__(self, config: Config, task: str, method: str, *, seed: int, run: Path) -> None:
        self._config, self._task, self._method, self._seed, self._run = config, task, method, seed, Run(Path(run))
        self._settings = run_settings(config, task, method)
        self._found: Entity | None = None
        self._logged: Values = {}
        self._pictures: set[int] = set()  # epochs

    @property
    def run_id(self) -> str:
        return self._found.info.run_id

    def forget(self) -> None:
        """Ask MLflow again, the next time, what it holds: what became of a request that failed is not known."""
        self._found = None

    def update(self, client: "MlflowClient") -> int:
        """Log what the files have and MLflow has not; returns how many values. Raises InputError when metrics are missing."""
        rows = self._rows()
        test = _test_values(self._run.folder, self._task, main_scorer(self._config, self._task))
        system, times = _system_values(self._run)
        values = test | _picture_values(self._run) | _training_values(rows) | system
        values = dict(sorted(values.items(), key=lambda each: each[0][0].startswith("watch/")))  # shown as first logged
        seconds = _seconds(rows)
        known = self._found is not None and not any(
            _differs(at, self._logged[at], values) for at in values.keys() & self._logged
        )
        if not known:
            self._find_or_create(client, values, sum(seconds))
        start = self._found.info.start_time
        new = {at: value for at, value in values.items() if at not in self._logged}
        _log(client, self.run_id, new, {at: times.get(at, start + int(1000 * sum(seconds[: at[1]]))) for at in new})
        self._logged |= new
        self._log_pictures(client, start, seconds)
        return len(new)

    def finish(self, client: "MlflowClient") -> None:
        """Log what is there at the end, after `update`. Raises InputError when the last adapter is missing."""
        adapter = self._run.adapter(self._settings.training.epochs)
        if self._method != "base":
            if not adapter.is_dir():
                raise InputError(f"{adapter}: no such folder; finish the training with `star train --out {self._run.folder}`")
            client.log_artifacts(self.run_id, str(adapter), "adapter")
        if self._run.maps.is_dir():
            client.log_artifacts(self.run_id, str(self._run.maps), "maps")
        client.set_terminated(self.run_id, "FINISHED", self._found.info.start_time + int(1000 * sum(_seconds(self._rows()))))

    def _rows(self) -> list[dict]:
        return [] if self._method == "base" else _training_rows(self._run)

    def _find_or_create(self, client: "MlflowClient", values: Values, seconds: float) -> None:
        """Find the run and what it holds, and log its params, tags and settings; a new run where the files say otherwise."""
        about = _ABOUT_TASK.format(experiment=self._config.experiment, task=self._task)
        experiment = store.experiment(client, self._config, f"{self._config.experiment}-{self._task}", about)
        tags = self._tags()
        found = _find(client, experiment, tags["star.key"])
        logged = _logged(client, found) if found else {}
        if found and any(_differs(at, value, values) for at, value in logged.items()):
            client.delete_run(found.info.run_id)
            found, logged = None, {}
        if found is None:
            name, start = f"{self._method}-seed{self._seed}", int(1000 * (time.time() - seconds))
            found, held = client.create_run(experiment, start, tags, run_name=name), {}
        else:
            held = found.data.tags
            client.update_run(found.info.run_id, status="RUNNING")
        run_id, settings = found.info.run_id, self._settings.model_dump(mode="json")
        missing = {key: value for key, value in _flat(settings).items() if key not in found.data.params}
        _log_settings(client, run_id, missing, {key: value for key, value in tags.items() if key != _NOTE or key not in held})
        client.log_dict(run_id, settings, "settings.json")
        names = [Path(artifact.path).name for artifact in client.list_artifacts(run_id, "images")]
        self._pictures = {int(name.split("+")[2]) for name in names if name.startswith(_PICTURES.replace("/", "~"))}
        self._found, self._logged = found, logged

    def _tags(self) -> dict[str, str]:
        config, task, method, key = self._config, self._task, self._method, training_key(self._settings)
        what = _what(config, method)
        return {
            "star.key": f"{config.experiment}/{task}/{method}/seed{self._seed}/{key}",
            "task": task,
            "method": method,
            "seed": str(self._seed),
            "configuration": config.experiment,
            "config_hash": key,
            **_precision(self._run),
            **_revision(),
            _NOTE: _ABOUT_RUN.format(task=task, method=method, seed=self._seed, experiment=config.experiment, what=what),
        }

    def _log_pictures(self, client: "MlflowClient", start: int, seconds: list[float]) -> None:
        """Log new pictures for the slider of the charts, and the newest for the page that a run opens with."""
        from PIL import Image

        new = None
        for file in sorted(self._run.pictures.glob("epoch*.png")):
            if (epoch := epoch_of(file)) is not None and epoch not in self._pictures:
                with Image.open(file) as grid:
                    at = start + int(1000 * sum(seconds[:epoch]))
                    client.log_image(self.run_id, grid.convert("RGB"), key=_PICTURES, step=epoch, timestamp=at)
                self._pictures.add(epoch)
                new = file
        if new is not None:
            with TemporaryDirectory() as folder:
                newest = shutil.copy(new, Path(folder) / _NEWEST)
                client.log_artifact(self.run_id, newest)
            address = f"get-artifact?path={_NEWEST}&run_uuid={self.run_id}"
            about = f"![Pictures of fixed prompts after epoch {epoch_of(new)}]({address})\n\n{self._tags()[_NOTE]}"
            client.set_tag(self.run_id, _NOTE, about)


def mirror_tables(config: Config) -> str:
    """Log <results>/<experiment>/{tables,figures} as artifacts of one run; returns the MLflow run id. Raises InputError."""
    source = Path(config.results) / config.experiment
    for name in ("tables", "figures"):
        if not (source / name).is_dir():
            raise InputError(f"{source / name}: no such folder; run `star tables --out {source}`")
    about = _ABOUT_TABLES.format(experiment=config.experiment)
    key = f"{config.experiment}/tables"
    with store.client(config) as client:
        experiment = store.experiment(client, config, f"{config.experiment}-tables", about)
        tags = {"star.key": key, "mlflow.note.content": about}
        found = _find(client, experiment, key) or client.create_run(experiment, tags=tags, run_name="tables")
        for name in ("tables", "figures"):
            client.log_artifacts(found.info.run_id, str(source / name), name)
        client.set_terminated(found.info.run_id, "FINISHED")
    return found.info.run_id


def mirror_credit(config: Config, task: str, folder: Path) -> str:
    """Log a measurement of credit: the estimates of every allocation and the folder's tables and figure; returns the run id.

    Measuring on with more batches logs the estimates at that number of batches, in the same run. Raises InputError when the
    folder has no measurement.
    """
    import pandas as pd

    if not (folder / "credit.csv").is_file():
        raise InputError(f"{folder}: no credit.csv; run `star credit --task {task} --out {folder}`")
    table, about = pd.read_csv(folder / "credit.csv"), json.loads((folder / "measurement.json").read_text(encoding="utf-8"))
    key = f"{config.experiment}/credit/{task}/{about['key']}"
    batches = int(table["batches"].iloc[0])
    rows = [(f"{row['steps']}/{row['allocation']}", row) for _, row in table.iterrows()]
    values = {
        (f"{column}/{name}", batches): float(row[column])
        for column in _CREDIT
        for name, row in rows
        if math.isfinite(row[column])
    }
    about_all = _ABOUT_CREDIT.format(experiment=config.experiment)
    tags = {"star.key": key, "task": task, "configuration": config.experiment, **_revision(), _NOTE: about_all}
    with store.client(config) as client:
        experiment = store.experiment(client, config, f"{config.experiment}-credit", about_all)
        found = _find(client, experiment, key) or client.create_run(experiment, tags=tags, run_name=task)
        known = _logged(client, found)
        now = int(1000 * time.time())
        new = {at: value for at, value in values.items() if known.get(at) != value}
        _log(client, found.info.run_id, new, dict.fromkeys(new, now))
        params = {name: value for name, value in _flat(about).items() if name not in found.data.params}
        _log_settings(client, found.info.run_id, params, tags)
        for file in sorted(file for suffix in ("csv", "md", "svg") for file in folder.glob(f"*.{suffix}")):
            client.log_artifact(found.info.run_id, str(file))
        client.set_terminated(found.info.run_id, "FINISHED")
    return found.info.run_id


def _find(client: "MlflowClient", experiment: str, key: str) -> "Entity | None":
    runs = client.search_runs([experiment], f"tags.`star.key` = '{key}'")
    return runs[0] if runs else None


def _logged(client: "MlflowClient", found: "Entity") -> Values:
    """Everything that the run holds."""
    histories = (client.get_metric_history(found.info.run_id, key) for key in found.data.metrics)
    return {(m.key, m.step): m.value for history in histories for m in history}


def _differs(at: tuple[str, int], logged: float, values: Values) -> bool:
    """Whether the files say otherwise. Of epochs that are to be done again they say nothing yet."""
    metric, epoch = at
    if metric.startswith(_MEASURED):
        return False
    done = max((step for name, step in values if name.startswith("training/")), default=0)
    awaited = metric.startswith(("training/", "tracked/")) and epoch > done
    return not awaited and values.get(at) != logged


def _log_settings(client: "MlflowClient", run_id: str, params: dict[str, str], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
    said = [Param(*param) for param in params.items()]
    for first in range(0, len(said), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=said[first : first + _PARAMS_A_BATCH])


def _log(client: "MlflowClient", run_id: str, values: Values, times: dict[tuple[str, int], int]) -> None:
    """Log values at their times, milliseconds."""
    from mlflow.entities import Metric

    metrics = [Metric(key, value, times[key, step], step) for (key, step), value in values.items()]
    for first in range(0, len(metrics), _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + _METRICS_A_BATCH])


def _whole_lines(path: Path) -> list[dict]:
    """The JSON lines of a file that another thread may be writing a line of."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.is_file() else []


def _training_rows(run: Run) -> list[dict]:
    if not run.metrics.is_file():
        raise InputError(f"{run.metrics}: no such file; train first with `star train --out {run.folder}`")
    rows = _whole_lines(run.metrics)
    for number, row in enumerate(rows, start=1):
        if row.get("epoch") != number:
            raise InputError(f"{run.metrics}:{number}: epoch {row.get('epoch')!r} where {number} belongs; rerun `star train`")
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


def _numbers(prefix: str, step: int, row: dict) -> Values:
    """The numbers of a row. Nulls and non-finite numbers, which MLflow cannot draw, stay in the files only."""
    return {
        (f"{prefix}/{key}", step): float(value)
        for key, value in row.items()
        if key not in ("epoch", "time", "pictures") and isinstance(value, int | float) and math.isfinite(value)
    }


def _training_values(rows: list[dict]) -> Values:
    """training/<metric> by epoch."""
    return {at: value for row in rows for at, value in _numbers("training", row["epoch"], row).items()}


def _picture_values(run: Run) -> Values:
    """tracked/<what is measured on the pictures of fixed prompts> by epoch."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(run.pictures.glob("epoch*.json"))]
    return {at: value for row in rows for at, value in _numbers("tracked", row["epoch"], row).items()}


def _system_values(run: Run) -> tuple[Values, dict[tuple[str, int], int]]:
    """system/<part of the machine> by the number of the look at it, and when that was, milliseconds."""
    values, times = {}, {}
    for number, row in enumerate(_whole_lines(run.system)):
        here = _numbers("system", number, row)
        values |= here
        times |= dict.fromkeys(here, row["time"])
    return values, times


def _test_values(run: Path, task: str, scorer: str) -> Values:
    """(metric, step) -> value of every checkpoint: test/<task>, test/<task>/<tag> where tags are averaged; watch/<guard>.

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
            for key, value in json.loads(summary.read_text(encoding="utf-8")).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    values[f"test/{key}", step] = float(value)
    for path in sorted((run / "guards").glob("epoch*.json")):
        for guard, value, *_ in read_guards(path):
            if value is not None:
                values[f"watch/{guard}", epoch_of(path)] = float(value)
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


def _precision(run: Run) -> dict[str, str]:
    """What `policy.precision` came to in a training, as a tag; nothing for `base`."""
    if not run.environment.exists():
        return {}
    known = json.loads(run.environment.read_text(encoding="utf-8")).get("precision")  # older versions did not write it
    return {"precision": known.removeprefix("torch.")} if known else {}


def _revision() -> dict[str, str]:
    """The git revision of this package as tags; none where it was installed without git."""
    found = revision()
    return {"git_revision": found, "mlflow.source.git.commit": found.removesuffix("-dirty")} if found else {}
