"""Killed with SIGKILL at 24 random moments and started again: the same bits as without. `make test-kill`; minutes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from trainings import SMALL, metrics, numbers

from star import config as configuration

ROOT = Path(__file__).parents[2]
SETTINGS = [*SMALL, "training.epochs=12", "checkpoints.every=6", "checkpoints.save_every=1", "training.ema_every=1"]
SETTINGS += ["scorers.workers=1"]


def _command(folder: Path, base: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration.load(ROOT / "config/miniature.yaml", [*SETTINGS, f"policy.model={base}"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    train = [sys.executable, "-m", "star.cli", "train", "--config", str(folder / "config.yaml"), "--task", "preference"]
    return [*train, "--method", "star", "--out", str(folder / "run")]


def _start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _result(folder: Path) -> tuple[list[dict], dict[str, bytes]]:
    files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}
    return numbers(metrics(folder / "run")), files


@pytest.fixture(scope="module")
def uninterrupted(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A finished run, and how many seconds it took."""
    folder, began = tmp_path_factory.mktemp("uninterrupted"), time.monotonic()
    process = _start(_command(folder, random_base))
    assert process.wait(300) == 0, process.stderr.read()
    return folder, time.monotonic() - began


@pytest.mark.parametrize("moment", range(24))
def test_killed_at_a_random_moment(random_base: Path, tmp_path: Path, uninterrupted: tuple[Path, float], moment: int) -> None:
    whole, seconds = uninterrupted
    command = _command(tmp_path, random_base)
    process = _start(command)
    pause = random.Random(moment).uniform(0.2, 1.0) * seconds  # the first fifth is imports
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = tmp_path / "run/metrics.jsonl"
    print(f"killed after {pause:.2f} s, {len(done.read_text().splitlines()) if done.exists() else 0} epochs done")
    process = _start(command)
    assert process.wait(300) == 0, process.stderr.read()
    assert _result(tmp_path) == _result(whole)
