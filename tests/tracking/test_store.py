"""A database that MLflow cannot use is said in one line, before work, and not touched."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from toy import Toy

from star import cli
from star.config import load
from star.tracking import store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("made")
    with store.client(load(ROOT / "config/miniature.yaml", [f"results={folder}"])) as client:
        client.create_experiment("some")
    return folder / "mlflow.db"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("451aebb31d03", "made by another version of MLflow; copy it"),
        ("f0f0f0f0f0f0", "made by another version of MLflow; copy it"),
        (None, "is no database that can be read"),
    ],
)
def test_a_database_of_another_version_is_refused_in_one_line(
    version: str | None,
    words: str,
    database: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "mlflow.db"
    if version is None:
        other.write_bytes(b"no database" * 100)
    else:
        shutil.copy(database, other)
        with closing(sqlite3.connect(other)) as connection, connection:
            connection.execute("update alembic_version set version_num = ?", (version,))
    content = other.read_bytes()
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = tmp_path / "miniature"
    for made in ("tables", "figures"):
        (experiment / made).mkdir(parents=True)
    for command in (["log", "--tables"], ["ui", "--port", "0"]):
        assert cli.main([*command, "--set", f"results={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"star {command[0]}: {other}: {words}") and said.count("\n") == 1
    assert other.read_bytes() == content


def test_snakemake_says_it_before_the_first_job(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/mlflow.db").write_bytes(b"no database" * 100)
    refused = toy.snakemake("--until", "prompts")
    assert refused.returncode == 1 and "results/mlflow.db: is no database that can be read" in refused.stdout
    assert "Traceback" not in refused.stdout and not (tmp_path / "calls.txt").exists()
    assert not any(tmp_path.glob(".snakemake/locks/*")) and not any(tmp_path.glob(".snakemake/owners/*"))
