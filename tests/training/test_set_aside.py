"""Checkpoints of other settings, of earlier versions and of nobody: kept under another name, never removed."""

import json
from pathlib import Path

import pytest

from star.errors import InputError
from star.layout import ADAPTER_FILE, Run
from star.training.checkpoint import newest


def _checkpoint(folder: Path, key: str | None, epoch: int, weights: bytes = b"weights") -> None:
    """A checkpoint of one file; without `key` one that was pruned to its adapter."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / ADAPTER_FILE).write_bytes(weights)
    if key is not None:
        (folder / "state").mkdir()
        progress = {"settings": key, "epoch": epoch, "sha256": {}}
        (folder / "state/progress.json").write_text(json.dumps(progress))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    _checkpoint(run.checkpoint(1), None, 1, b"first")
    _checkpoint(run.checkpoint(2), "aaaa", 2, b"second")
    run.metrics.write_text('{"epoch": 1}\n')
    run.settings.write_text("{}")
    return run


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_key_decides_who_goes_on(run: Run) -> None:
    before = _contents(run.folder)
    assert newest(run, "aaaa", 9, start_over=True) == run.checkpoint(2)
    assert newest(run, "aaaa", 1, start_over=True) is None  # fewer epochs than there are: a new start beside them
    assert _contents(run.folder) == before
    with pytest.raises(InputError, match=r"give --start-over, which keeps them as checkpoints\.aaaa"):
        newest(run, "bbbb", 9, start_over=False)
    assert _contents(run.folder) == before


def test_checkpoints_of_another_key_are_kept_with_their_metrics(run: Run, capsys: pytest.CaptureFixture) -> None:
    before = _contents(run.checkpoints)
    assert newest(run, "bbbb", 9, start_over=True) is None
    aside = run.folder / "checkpoints.aaaa"
    assert f"kept as {aside}" in capsys.readouterr().err and not run.checkpoints.exists() and not run.metrics.exists()
    assert _contents(aside) == before | {"metrics.jsonl": b'{"epoch": 1}\n', "settings.json": b"{}"}
    _checkpoint(run.checkpoint(3), "aaaa", 3)
    assert newest(run, "bbbb", 9, start_over=True) is None  # the same key once more: the name is taken
    assert (run.folder / "checkpoints.aaaa~2/epoch0003").is_dir() and len(_contents(aside)) == len(before) + 2


def test_checkpoints_of_an_earlier_version_are_kept_and_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = Run(tmp_path)
    _checkpoint(run.checkpoints / "step36", "0123-4567", 36)
    with pytest.raises(InputError, match="or by an earlier version"):
        newest(run, "bbbb", 9, start_over=False)
    assert newest(run, "bbbb", 9, start_over=True) is None
    assert (tmp_path / "checkpoints.0123-4567/step36/adapter" / ADAPTER_FILE).exists()
    assert "by an earlier version; kept as" in capsys.readouterr().err


def test_adapters_whose_settings_nobody_knows_are_not_written_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    _checkpoint(run.checkpoint(1), None, 1)
    _checkpoint(run.checkpoint(2), "aaaa", 2)
    (run.checkpoint(2) / "state/progress.json").write_text("torn")
    assert newest(run, "aaaa", 9, start_over=True) is None
    assert {f.name for f in (tmp_path / "checkpoints.unknown").iterdir()} == {"epoch0001", "epoch0002.damaged"}


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    assert newest(Run(tmp_path / "none"), "aaaa", 9, start_over=False) is None
    assert list(tmp_path.iterdir()) == []
