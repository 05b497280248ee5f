"""Jobs side by side on one machine take different GPUs. `nvidia-smi` is a stand-in that lists three."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "workflow/scripts/on_gpus.py"
NAMES = ["GPU-a1-0", "GPU-b2-1", "GPU-c3-2"]
JOB = """
import json, os, sys, time
began = time.time()
open(sys.argv[1] + ".began", "w").close()
time.sleep(float(sys.argv[2]))
seen = os.environ.get("CUDA_VISIBLE_DEVICES")
open(sys.argv[1], "w").write(json.dumps({"gpus": seen and seen.split(","), "began": began, "ended": time.time()}))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of three GPUs, with locks of its own."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    lines = "".join(f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: {name})'\n" for i, name in enumerate(NAMES))
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _start(folder: Path, name: str, wanted: int, seconds: float) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(wanted), sys.executable, "-c", JOB, str(folder / name), str(seconds)]
    return subprocess.Popen(command)


def _done(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_no_two_jobs_have_a_gpu_at_the_same_time_and_all_gpus_are_used(machine: Path) -> None:
    started = [_start(machine, str(i), wanted, 0.6) for i, wanted in enumerate((1, 1, 2, 1, 2, 1))]
    assert [process.wait(60) for process in started] == [0] * 6
    jobs = [_done(machine, str(i)) for i in range(6)]
    assert [len(job["gpus"]) for job in jobs] == [1, 1, 2, 1, 2, 1]
    for i, one in enumerate(jobs):
        for other in jobs[:i]:
            if one["began"] < other["ended"] and other["began"] < one["ended"]:
                assert not set(one["gpus"]) & set(other["gpus"])
    assert {gpu for job in jobs for gpu in job["gpus"]} == set(NAMES)


def test_a_killed_job_leaves_its_gpus(machine: Path) -> None:
    holder = _start(machine, "holder", 2, 60)
    deadline = time.monotonic() + 30
    while not (machine / "holder.began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    waiting = _start(machine, "next", 2, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    holder.kill()
    holder.wait()
    assert waiting.wait(30) == 0 and len(_done(machine, "next")["gpus"]) == 2


@pytest.mark.parametrize(
    ("set_to", "wanted", "gpus"),
    [
        ("2", 1, ["2"]),
        ("0,2", 2, ["0", "2"]),
        (" 1, 2", 1, ["1"]),
        ("GPU-b2,GPU-c3-2", 1, ["GPU-b2"]),
        ("1,7,0", 1, ["1"]),
        ("-1,0", 1, ["-1", "0"]),
        ("", 1, [""]),
        ("2", 2, ["2"]),
    ],
)
def test_it_chooses_among_those_that_cuda_would_see(
    machine: Path, monkeypatch: pytest.MonkeyPatch, set_to: str, wanted: int, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", set_to)
    assert _start(machine, "job", wanted, 0).wait(30) == 0
    assert (_done(machine, "job")["gpus"] or [""]) == gpus


def test_a_job_waits_for_gpus_by_whatever_name_but_not_for_those_that_slurm_gave(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = _start(machine, "holder", 1, 60)
    while not (machine / "holder.began").exists():
        time.sleep(0.01)
    for name in ("0", NAMES[0], "GPU-a1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        waiting = _start(machine, "waiting", 1, 0)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        waiting.kill()
        waiting.wait()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert _start(machine, "slurm", 1, 0).wait(30) == 0
    holder.kill()
    holder.wait()


@pytest.mark.parametrize("broken", [False, True])
def test_without_gpus_the_command_runs_as_it_is_and_its_exit_code_stays(
    machine: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    tool = machine / "bin/nvidia-smi"
    monkeypatch.setenv("PATH", str(tool.parent))  # a real one must not be found
    tool.unlink()
    if broken:
        tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
        tool.chmod(0o755)
    assert _start(machine, "job", 1, 0).wait(30) == 0
    assert _done(machine, "job")["gpus"] is None
    failing = [sys.executable, str(SCRIPT), "1", sys.executable, "-c", "raise SystemExit(75)"]
    assert subprocess.run(failing, check=False).returncode == 75
