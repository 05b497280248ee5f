"""Killed with SIGKILL at 24 random moments and started again: the same bits as the uninterrupted run. `make test-kill`; minutes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from star import config as configuration

ROOT = Path(__file__).parents[2]
TIMINGS = ("seconds_rollout", "seconds_reward", "seconds_maps", "seconds_update", "peak_memory_bytes")
SETTINGS = ["rollout.steps=3", "rollout.groups=2", "rollout.group_size=4", "rollout.batch=4", "rollout.trained_fraction=0.7"]
SETTINGS += ["rollout.window=null", "rollout.window_range=null", "training.epochs=12", "training.checkpoint_every=6"]
SETTINGS += ["training.save_every=1", "training.ema_every=1", "policy.lora={rank: 4, alpha: 8}", "scorers.workers=1"]


def _command(folder: Path, base: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration.load(ROOT / "config/miniature.yaml", [*SETTINGS, f"policy.model={base}"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    train = [sys.executable, "-m", "star.cli", "train", "--config", str(folder / "config.yaml"), "--task", "pickscore"]
    return [*train, "--method", "star", "--out", str(folder / "run")]


def _start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _result(folder: Path) -> tuple[list[dict], dict[str, bytes]]:
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows], files


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
    metrics = tmp_path / "run/metrics.jsonl"
    print(f"killed after {pause:.2f} s, {len(metrics.read_text().splitlines()) if metrics.exists() else 0} epochs done")
    process = _start(command)
    assert process.wait(300) == 0, process.stderr.read()
    assert _result(tmp_path) == _result(whole)
