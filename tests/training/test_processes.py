"""Several processes against one: the same numbers, a stopped and a killed one. Launched as the rule does, on CPUs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from trainings import SMALL, metrics, numbers

from star import cli
from star import config as configuration
from star.training.update import deal, micro_batches

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0"]
NFT = "methods.nft={objective: {name: nft}, rollout: {same_start: false}, allocation: "
NFT += "{source: attention_covariance, control: random, time: measured}}"


def _command(folder: Path, base: Path, processes: int, method: str, *more: str) -> list[str]:
    """`star train` of three epochs of 2 prompts x 8 images, in batches of 4, so that groups lie over the processes."""
    settings = [
        *SMALL,
        "rollout.group_size=8",
        "methods.random.allocation={source: attention_covariance, contrast_latents: predicted, time: snr}",
        "checkpoints.every=3",
        "training.updates_per_epoch=2",
        "training.ema_every=1",
    ]
    settings += ["checkpoints.keep_states=1", "policy.precision=float32", f"policy.model={base}"]
    config = configuration.load(ROOT / "config/miniature.yaml", [*settings, NFT, *more])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    train = ["-m", "star.cli", "train", "--config", str(folder / "config.yaml"), "--task", "preference", "--method", method]
    train += ["--out", str(folder / "run")]
    return [sys.executable, *train] if processes == 1 else [*LAUNCH, "--num_processes", str(processes), *train]


def _start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _finish(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=240)
    return printed


def _metrics(folder: Path) -> list[dict]:
    return numbers(metrics(folder / "run"))


def _adapter(folder: Path, epoch: int = 3) -> dict[str, torch.Tensor]:
    return load_file(folder / f"run/checkpoints/epoch{epoch:04d}/adapter/pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def alone(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    process = _start(_command(folder, random_base, 1, "random"))
    assert process.wait(240) == 0, process.stdout.read()
    return folder


@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_give_the_numbers_of_one(random_base: Path, tmp_path: Path, alone: Path, shard: str) -> None:
    process = _start(_command(tmp_path, random_base, 2, "random", f"compute={{processes: 2, shard: {shard}}}"))
    printed = _finish(process)
    assert process.returncode == 0, printed
    assert "2 for each of 2 process(es)" in printed
    ours, theirs = _metrics(tmp_path), _metrics(alone)
    assert [row["epoch"] for row in ours] == [1, 2, 3]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    first = {k: v for k, v in ours[0].items() if k.startswith(("reward", "map_", "localisation", "zero"))}
    assert first == pytest.approx({k: theirs[0][k] for k in first}, rel=1e-6)  # before the first update nothing was added up
    for name, tensor in _adapter(alone).items():
        torch.testing.assert_close(_adapter(tmp_path)[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["random", "nft"])
def test_a_process_whose_micro_batches_all_only_fill_up_agrees_with_the_others(
    random_base: Path, tmp_path: Path, method: str
) -> None:
    one_a_step = ["training.updates_per_epoch=4", "training.epochs=1", "checkpoints.every=1"]
    process = _start(_command(tmp_path / "2", random_base, 2, method, *one_a_step, "compute={processes: 2}"))
    assert cli.main(_command(tmp_path / "1", random_base, 1, method, *one_a_step)[3:]) == 0  # in this one, meanwhile
    printed = _finish(process)
    assert process.returncode == 0, printed
    ((one,), (two,)) = (_metrics(tmp_path / "1"), _metrics(tmp_path / "2"))
    assert two == pytest.approx(one, rel=2e-3, abs=1e-5)
    for name, tensor in _adapter(tmp_path / "1", 1).items():
        torch.testing.assert_close(_adapter(tmp_path / "2", 1)[name], tensor, rtol=1e-3, atol=1e-5)


def _wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)


def _workers(launcher: int) -> list[int]:
    """The training processes of a launcher, by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = entry.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher:
            found |= {int(v.removeprefix(b"RANK=")): int(entry.name) for v in variables if v.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize("how", ["SIGTERM to one", "SIGKILL of one"])
def test_a_stopped_or_killed_process_ends_all_and_the_run_goes_on(
    random_base: Path, tmp_path: Path, alone: Path, how: str
) -> None:
    command = _command(tmp_path, random_base, 2, "random", "compute={processes: 2}", "checkpoints.save_every=1")
    process = _start(command)
    _wait_for(tmp_path / "run/checkpoints/epoch0001/adapter", process)
    os.kill(_workers(process.pid)[1], signal.SIGTERM if "TERM" in how else signal.SIGKILL)
    printed = _finish(process)
    assert process.returncode != 0
    if "TERM" in how:
        assert "stopped by SIGTERM in epoch" in printed and "exitcode  : 75" in printed, printed
    assert not (tmp_path / "run/checkpoints/epoch0003").exists()
    process = _start(command)
    printed = _finish(process)
    assert process.returncode == 0, printed
    for a, b in zip(_metrics(tmp_path), _metrics(alone), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    kept = [f.name for f in (tmp_path / "run/checkpoints").iterdir() if f.is_dir()]
    assert kept == ["epoch0003"]  # the others were for resuming


def test_sigterm_alone_writes_the_last_whole_epoch_and_exits_75(random_base: Path, tmp_path: Path, alone: Path) -> None:
    command = _command(tmp_path, random_base, 1, "random")
    process = _start(command)
    _wait_for(tmp_path / "run/metrics.jsonl", process)
    while not (tmp_path / "run/metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    printed = _finish(process)
    assert process.returncode == 75 and "the same command goes on from epoch" in printed, printed
    assert "Traceback" not in printed
    process = _start(command)
    printed = _finish(process)
    assert process.returncode == 0, printed
    assert _metrics(tmp_path) == _metrics(alone)
    for name, tensor in _adapter(alone).items():
        assert torch.equal(tensor, _adapter(tmp_path)[name]), name


def test_every_process_gets_as_many_micro_batches_and_each_counts_once() -> None:
    updates = micro_batches(np.arange(26), 3, 2, seed=0, epoch=1)
    for batches in updates:
        dealt = deal(batches, 4)
        assert len({len(one) for one in dealt}) == 1
        counted = [row for one in dealt for rows, count in one for row in rows[:count]]
        assert sorted(counted) == sorted(row for rows, count in batches for row in rows[:count])
    assert deal(updates[0], 1) == [updates[0]]
