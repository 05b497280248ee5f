"""The MLflow mirror: several processes at once, nothing lost, nothing twice, and a replay where the files changed."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from star.config import Config, parse
from star.errors import InputError
from star.tracking import store
from star.tracking.mirror import mirror, mirror_credit, mirror_tables

BASE = Path(__file__).parents[2] / "resources/miniature/base"
EPOCHS = 120  # with eleven values an epoch more than MLflow takes in one batch
METHODS = ("flow_grpo", "star", "random")


def _data(folder: Path) -> dict:
    (folder / "base").mkdir()
    return {
        "experiment": "mirrored",
        "results": str(folder),
        "seeds": [0],
        "prompts": {"world": "miniature"},
        "policy": {"model": str(folder / "base"), "resolution": 64, "guidance": 1.0},
        "rollout": {},
        "training": {"epochs": EPOCHS},
        "checkpoints": {"every": EPOCHS},
        "evaluation": {},
        "scorers": {"geneval": {"detector": "miniature"}},
        "tasks": {"geneval": {"prompts": "shapes", "reward": {"geneval": 1.0}}},
        "methods": {m: {"optimizer": {"learning_rate": 0.1 * (i + 1)}} for i, m in enumerate(METHODS)},
    }


def _run(folder: Path, method: str) -> Path:
    return folder / "mirrored/geneval" / method / "seed0"


def _rows(epochs: int) -> list[dict]:
    values = dict.fromkeys(("loss", "kl", "reward_mean", "ratio_mean", "grad_norm", "policy_loss", "images"), 0.5)
    seconds = {"seconds_rollout": 2.0, "seconds_maps": 0.0, "seconds_reward": 0.5, "seconds_update": 1.5}
    return [{"epoch": e, **values, "reward_std": e / 7, **seconds, "map_entropy": None} for e in range(1, epochs + 1)]


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _fill(folder: Path, method: str, epochs: int = EPOCHS, step: int = EPOCHS) -> Path:
    run = _run(folder, method)
    if method != "base":
        _write(run / "metrics.jsonl", _rows(epochs))
        adapter = run / f"checkpoints/epoch{EPOCHS:04d}/adapter"
        adapter.mkdir(parents=True)
        (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
        (run / "maps").mkdir()
        (run / "maps/maps.svg").write_text("<svg/>")
    tags = ["counting", "counting", "counting", "colors"]
    known = {"sample": 0, "prompt": "p", "filename": "f", "scorer": "s"}
    scores = [{"tag": t, "score": float(i > 0), "prompt_id": f"{i}", **known} for i, t in enumerate(tags)]
    _write(run / f"scores/epoch{step:04d}.jsonl", scores)
    _write(run / f"scores/epoch{step:04d}.ocr.jsonl", scores)  # another reported scorer
    measured = {"diversity": None, "edge_density": 0.25, "color_entropy": 1.5}
    cross = {"pickscore": {"mean": 19.5, "images": 4, "scorer": "p"}}
    _write(run / f"guards/epoch{step:04d}.json", [{"images": 4, "features": "clip", **measured, "cross": cross}])
    return run


def _stored(folder: Path) -> dict[str, list[tuple[str, int, float]]]:
    """method -> every metric row of its live runs, read from the database without MLflow."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        found = database.execute(
            "select t.value, m.key, m.step, m.value from metrics m join runs r using (run_uuid) "
            "join tags t using (run_uuid) where t.key = 'method' and r.lifecycle_stage = 'active'"
        ).fetchall()
    methods = {method for method, *_ in found}
    return {method: sorted(tuple(row) for m, *row in found if m == method) for method in methods}


def _expected(epochs: int = EPOCHS) -> list[tuple[str, int, float]]:
    rows = [
        (f"training/{key}", row["epoch"], value)
        for row in _rows(epochs)
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    tests = {"": (2 / 3 + 1) / 2, "/counting": 2 / 3, "/colors": 1.0, "/ocr": 0.75}
    guards = {"edge_density": 0.25, "color_entropy": 1.5, "pickscore": 19.5}  # no diversity of single pictures
    rows += [(f"watch/{guard}", EPOCHS, value) for guard, value in guards.items()]
    return sorted(rows + [(f"test/geneval{tag}", EPOCHS, value) for tag, value in tests.items()])


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, str]]:
    """Three processes that mirror three runs at once into a database that does not exist yet; and their run ids."""
    folder = tmp_path_factory.mktemp("results")
    data = _data(folder)
    program = (
        "import json, sys; from pathlib import Path; from star import config; from star.tracking.mirror import mirror; "
        "c = config.parse(json.loads(sys.argv[1]), 'c'); "
        "print(mirror(c, 'geneval', sys.argv[2], 0, Path(sys.argv[3])))"
    )
    processes = {}
    for method in METHODS:
        command = [sys.executable, "-c", program, json.dumps(data), method, str(_fill(folder, method))]
        processes[method] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ids = {}
    for method, process in processes.items():
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        ids[method] = out.strip()
    return parse(data, "c"), ids


def test_processes_at_once_lose_nothing(mirrored: tuple[Config, dict[str, str]]):
    config, ids = mirrored
    assert len(set(ids.values())) == 3
    assert _stored(Path(config.results)) == {method: _expected() for method in METHODS}


def test_mirroring_again_adds_nothing(mirrored: tuple[Config, dict[str, str]]):
    config, ids = mirrored
    folder = Path(config.results)
    assert mirror(config, "geneval", "star", 0, _run(folder, "star")) == ids["star"]
    assert _stored(folder)["star"] == _expected()


def test_a_run_says_what_it_is(mirrored: tuple[Config, dict[str, str]]):
    from mlflow import MlflowClient

    config, ids = mirrored
    client = MlflowClient(f"sqlite:///{config.results}/mlflow.db")
    run = client.get_run(ids["star"])
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == EPOCHS * 4000
    assert run.data.params["optimizer.learning_rate"] == "0.2"
    assert run.data.tags["star.key"].startswith("mirrored/geneval/star/seed0/")
    assert {"task", "method", "seed", "config_hash", "mlflow.note.content"} <= set(run.data.tags)
    last = client.get_metric_history(ids["star"], "training/loss")[-1]
    assert last.timestamp - run.info.start_time == EPOCHS * 4000
    names = {a.path for d in ("", "adapter", "maps") for a in client.list_artifacts(ids["star"], d or None)}
    assert names >= {"settings.json", "adapter/pytorch_lora_weights.safetensors", "maps/maps.svg"}
    assert Path(config.results, "mlartifacts/mirrored-geneval", ids["star"]).is_dir()
    assert "Compare" in client.get_experiment_by_name("mirrored-geneval").tags["mlflow.note.content"]


def test_base_has_its_scores(mirrored: tuple[Config, dict[str, str]]):
    config, _ = mirrored
    folder = Path(config.results)
    mirror(config, "geneval", "base", 0, _fill(folder, "base", step=0))
    assert [row[:2] for row in _stored(folder)["base"]] == [
        ("test/geneval", 0),
        ("test/geneval/colors", 0),
        ("test/geneval/counting", 0),
        ("test/geneval/ocr", 0),
        ("watch/color_entropy", 0),
        ("watch/edge_density", 0),
        ("watch/pickscore", 0),
    ]


def test_a_growing_run_is_continued_and_a_changed_one_replayed(mirrored: tuple[Config, dict[str, str]]):
    config, _ = mirrored
    config = parse(config.model_dump() | {"experiment": "growing"}, "c")
    folder = Path(config.results)
    run = folder / "growing/geneval/star/seed0"
    with pytest.raises(InputError, match=r"metrics\.jsonl: no such file"):
        mirror(config, "geneval", "star", 0, run)
    _write(run / "metrics.jsonl", _rows(3))
    with pytest.raises(InputError, match="adapter"):
        mirror(config, "geneval", "star", 0, run)

    def stored(run_id: str) -> list[tuple[int, float]]:
        with sqlite3.connect(folder / "mlflow.db") as database:
            query = "select step, value from metrics where key = 'training/reward_std' and run_uuid = ? order by step"
            return database.execute(query, [run_id]).fetchall()

    first = mirror(config, "geneval", "star", 0, run, finished=False)
    _write(run / "metrics.jsonl", _rows(5))
    assert mirror(config, "geneval", "star", 0, run, finished=False) == first
    assert stored(first) == [(e, e / 7) for e in range(1, 6)]
    _write(run / "metrics.jsonl", [row | {"reward_std": -1.0} for row in _rows(2)])
    second = mirror(config, "geneval", "star", 0, run, finished=False)
    assert second != first
    assert stored(second) == [(1, -1.0), (2, -1.0)]
    with sqlite3.connect(folder / "mlflow.db") as database:
        states = dict(database.execute("select run_uuid, lifecycle_stage || ' ' || status from runs").fetchall())
    assert (states[first], states[second]) == ("deleted RUNNING", "active RUNNING")


def test_tables_are_artifacts(mirrored: tuple[Config, dict[str, str]]):
    config, _ = mirrored
    with pytest.raises(InputError, match="star tables"):
        mirror_tables(config)
    for name in ("tables/main.md", "figures/scores.svg"):
        path = Path(config.results, config.experiment, name)
        path.parent.mkdir(parents=True)
        path.write_text("-")
    run_id = mirror_tables(config)
    assert mirror_tables(config) == run_id
    artifacts = Path(config.results, "mlartifacts/mirrored-tables", run_id, "artifacts")
    assert (artifacts / "tables/main.md").is_file()
    assert (artifacts / "figures/scores.svg").is_file()


def test_credit_is_logged_by_number_of_batches_and_nothing_twice(mirrored: tuple[Config, dict[str, str]]) -> None:
    config, _ = mirrored
    folder = Path(config.results, config.experiment, "credit/geneval")
    with pytest.raises(InputError, match="star credit --task geneval"):
        mirror_credit(config, "geneval", folder)
    folder.mkdir(parents=True)
    (folder / "measurement.json").write_text(
        json.dumps({"key": "abc", "task": "geneval", "allocations": {"star": {"blocks": [1]}}})
    )
    for batches in (16, 32, 32):
        rows = [
            f"{name},{rule},{batches},1,1,0.1,{batches / 8},1" for rule in ("equal", "measured") for name in ("scalar", "star")
        ]
        head = "allocation,steps,batches,signal,noise,cosine,efficiency,gain"
        (folder / "credit.csv").write_text("\n".join([head, *rows[:-1], rows[-1].replace("0.1", "")]) + "\n")
        run_id = mirror_credit(config, "geneval", folder)
    with store.client(config) as client:
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, "efficiency/equal/star")
    assert [(one.step, one.value) for one in history] == [(16, 2.0), (32, 4.0)]
    assert "cosine/measured/star" not in run.data.metrics and run.data.metrics["cosine/equal/star"] == 0.1
    assert run.info.status == "FINISHED" and run.data.params["allocations.star.blocks"] == "[1]"
    assert Path(config.results, "mlartifacts/mirrored-credit", run_id, "artifacts/credit.csv").is_file()
