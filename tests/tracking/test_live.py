"""A training watched live by a real MLflow server that is killed and started again: nothing lost, nothing twice."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import Server
from trainings import config, metrics, numbers

from star.config import Config, run_settings
from star.config.key import training_key
from star.layout import ADAPTER_FILE, Run
from star.prompts import make
from star.tracking import live as following
from star.tracking import store
from star.tracking.live import Live
from star.tracking.mirror import mirror
from star.training import train as trainer

NAME = ("preference", "flow_grpo", 0)
WATCHED = ("tracking.live=true", "tracking.every=2", "tracking.prompts=2", "tracking.system_every=1", "evaluation.steps=2")


def _config(base: Path, results: Path, *more: str) -> Config:
    return config(base, *WATCHED, f"results={results}", *more)


def _train(chosen: Config, out: Path, live: Live | None) -> None:
    fixed = make.fixed(chosen, "preference", chosen.tracking.prompts)
    settings, records = run_settings(chosen, *NAME[:2]), make.records(chosen, "preference", "train")
    trainer.train(settings, 0, records, out, watched=trainer.Watched(fixed, live))


def _stored(database: Path) -> list[tuple[str, int, float]]:
    """Every metric row of the live runs, read from the database without MLflow."""
    with sqlite3.connect(database) as opened:
        query = "select key, step, value from metrics join runs using (run_uuid) where lifecycle_stage = 'active'"
        return sorted(opened.execute(query).fetchall())


def _expected(run: Path) -> list[tuple[str, int, float]]:
    rows = [("training", row["epoch"], row) for row in metrics(run)]
    rows += [("tracked", int(file.stem[5:]), json.loads(file.read_text())) for file in (run / "pictures").glob("*.json")]
    lines = (run / "system.jsonl").read_text().splitlines() if (run / "system.jsonl").exists() else []
    rows += [("system", number, json.loads(line)) for number, line in enumerate(lines)]
    return sorted(
        (f"{prefix}/{key}", step, float(value))
        for prefix, step, row in rows
        for key, value in row.items()
        if key not in ("epoch", "time", "pictures") and value is not None
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    with Server(folder) as running:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
        yield running


def test_nothing_is_lost_when_the_server_is_killed_and_started_again(
    random_base: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Killed while requests are on their way; the training goes on, and a resumed one joins the same MLflow run."""
    monkeypatch.setattr(following, "PAUSE", 0.05)
    chosen, run = _config(random_base, tmp_path / "results", "training.epochs=6"), tmp_path / "run"
    restarts: list[threading.Thread] = []

    class Interrupted(Live):
        def wake(self) -> None:
            super().wake()
            epoch = len(metrics(run))
            if epoch == 2:
                _until(lambda: self.sent > 0)  # once something has arrived
                server.kill()
            if epoch == 4:
                restarts.append(threading.Thread(target=server.start))
                restarts[0].start()

    live = Interrupted(chosen, *NAME, run)
    _train(chosen, run, live)
    restarts[0].join()
    assert "not sent to MLflow" in capsys.readouterr().err
    longer = _config(random_base, tmp_path / "results", "training.epochs=8")
    again = Live(longer, *NAME, run)
    _train(longer, run, again)
    stored = _stored(server.folder / "server.db")
    assert stored == _expected(run)  # each once: lost 0, twice 0
    assert {key.partition("/")[0] for key, *_ in stored} == {"training", "tracked", "system"}

    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    name = client.get_experiment_by_name("miniature-preference")
    assert name.tags["mlflow.experimentKind"] == "custom_model_development"
    (found,) = client.search_runs([name.experiment_id])
    assert found.info.status == "FINISHED" and found.data.tags["config_hash"] == training_key(run_settings(chosen, *NAME[:2]))
    pictures = [a.path for a in client.list_artifacts(found.info.run_id, "images") if a.path.endswith(".png")]
    assert sorted(int(p.split("+")[2]) for p in pictures) == [0, *range(1, 9)]  # every tested checkpoint has some
    assert mirror(longer, *NAME, run) == found.info.run_id  # `star log` is the same run, and adds nothing but artifacts
    assert _stored(server.folder / "server.db") == stored
    assert client.list_artifacts(found.info.run_id, "adapter")
    print(f"{len(stored)} values sent, 0 lost, 0 twice")


def _until(true: object) -> None:
    ends = time.monotonic() + 60
    while not true() and time.monotonic() < ends:
        time.sleep(0.02)
    assert true()


def test_watching_changes_no_number(random_base: Path, tmp_path: Path) -> None:
    """Metrics and adapters with pictures and live to sqlite, and without either."""
    chosen = _config(random_base, tmp_path / "results")
    _train(chosen, tmp_path / "watched", Live(chosen, *NAME, tmp_path / "watched"))
    settings, records = run_settings(chosen, *NAME[:2]), make.records(chosen, "preference", "train")
    trainer.train(settings, 0, records, tmp_path / "alone")
    assert numbers(metrics(tmp_path / "watched")) == numbers(metrics(tmp_path / "alone"))
    for epoch in ("epoch0001", "epoch0002", "epoch0003"):
        adapters = [Run(tmp_path / name).adapter(epoch) / ADAPTER_FILE for name in ("watched", "alone")]
        assert len({adapter.read_bytes() for adapter in adapters}) == 1
    assert _stored(tmp_path / "results/mlflow.db") == _expected(tmp_path / "watched")


def test_a_server_that_never_answers_neither_ends_nor_holds_up_a_training(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens on `discard`
    monkeypatch.setattr(following, "PATIENCE", 1.0)
    chosen, run = _config(random_base, tmp_path / "results", "tracking.prompts=0"), tmp_path / "run"
    _train(chosen, run, Live(chosen, *NAME, run))
    assert len(metrics(run)) == 3
    said = capsys.readouterr().err
    assert said.count("kept for later") == 1 and "not everything was sent to MLflow; `star log` sends the rest" in said


def test_a_database_on_a_network_file_system_is_left_for_the_end(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Disk:
        mountpoint, fstype = "/", "nfs4"

    monkeypatch.setattr(store.psutil, "disk_partitions", lambda all: [Disk])
    chosen, run = _config(random_base, tmp_path / "results"), tmp_path / "run"
    assert "would lie on nfs4" in store.unsafe_while_training(chosen)
    with Live(chosen, *NAME, run) as live:
        live.wake()
    assert "would lie on nfs4, which is not known as a local file system; `star log` sends it" in capsys.readouterr().err
    assert not (tmp_path / "results/mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert store.unsafe_while_training(chosen) is None
