"""The lock that a killed snakemake leaves: lifted, or left and said whose it is; nothing runs beside jobs that live on."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from toy import Toy

from star import lock_owner


def _in_a_terminal() -> None:
    """Signals as a terminal leaves them; `nohup` around the tests would be inherited."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _killed(toy: Toy) -> tuple[subprocess.Popen, int]:
    """A snakemake whose terminal was closed in its first training, which lives on; and that training's process."""
    (toy.folder / "wait").touch()
    out, pid = (toy.folder / "said.txt").open("w"), toy.folder / "training.pid"
    command = toy.command("--cores", "1", "--until", "train")
    process = subprocess.Popen(
        command, cwd=toy.folder, stdout=out, stderr=out, start_new_session=True, preexec_fn=_in_a_terminal
    )
    deadline = time.monotonic() + 90
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, (toy.folder / "said.txt").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    process.wait(30)
    (toy.folder / "wait").unlink()
    return process, int(pid.read_text())


def test_the_same_command_goes_on_after_a_kill_when_no_job_lives_on(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    process, training = _killed(toy)
    locks = sorted((tmp_path / ".snakemake/locks").iterdir())
    calls = toy.calls()

    refused = toy.snakemake("--until", "train")
    assert refused.returncode == 1 and "Traceback" not in refused.stdout
    assert f"live on: {training} (star train --config" in refused.stdout and f"`kill {training}`" in refused.stdout
    assert toy.calls() == calls and sorted((tmp_path / ".snakemake/locks").iterdir()) == locks
    assert toy.snakemake("-n", "--until", "train").returncode == 0  # looking changes nothing
    assert sorted((tmp_path / ".snakemake/locks").iterdir()) == locks

    os.kill(training, signal.SIGTERM)
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == training], timeout=30)
    deadline = time.monotonic() + 30
    while (done := toy.snakemake("--until", "train")).returncode and "live on" in done.stdout:  # the shell around it
        assert time.monotonic() < deadline, done.stdout
    assert done.returncode == 0, done.stdout
    assert f"Lifted the lock of a snakemake that was killed here (process {process.pid})" in done.stdout
    assert not any((tmp_path / ".snakemake/owners").iterdir()) and not any(tmp_path.glob(".snakemake/locks/*"))


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a lock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(lock_owner.MARK, "")
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("results/x\n")
    return tmp_path


def _noted(folder: Path, **changed: object) -> Path:
    """This process's note with something else in it, as another process's."""
    own = lock_owner.note_oneself()
    other = own.with_name("other.json")
    other.write_text(json.dumps(json.loads(own.read_text()) | changed))
    return own


@pytest.mark.parametrize("changed", [{"began": 1}, {"boot": "the one before the power cut"}])
def test_a_process_of_the_same_number_is_not_the_owner(locked: Path, changed: dict, capsys: pytest.CaptureFixture) -> None:
    own = _noted(locked, **changed)
    assert lock_owner.lift(own) is None
    assert capsys.readouterr().err == f"Lifted the lock of a snakemake that was killed here (process {os.getpid()})\n"
    assert not (locked / ".snakemake/locks").exists() and list(lock_owner.OWNERS.iterdir()) == [own]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "a snakemake is at work here (process {pid}); wait for it"),
        ({"host": "elsewhere"}, "locked by a snakemake on elsewhere (process"),
    ],
)
def test_a_lock_whose_owner_may_live_is_left(locked: Path, changed: dict, words: str) -> None:
    own = _noted(locked, **changed)
    assert lock_owner.lift(own) is None and (locked / ".snakemake/locks/0.output.lock").exists()
    said = lock_owner.explain(own)
    assert words.format(pid=os.getpid()) in said and "\n" not in said and ("--unlock" in said) == ("host" in changed)


def test_nothing_starts_beside_jobs_that_live_on_were_the_lock_lifted_by_hand(locked: Path) -> None:
    own = _noted(locked, began=1)
    other = lock_owner.Owner(**json.loads(own.with_name("other.json").read_text()))
    job = subprocess.Popen(["sleep", "60"], env=os.environ | {lock_owner.MARK: " ".join(map(str, other))})
    (locked / ".snakemake/locks/0.output.lock").unlink()
    try:
        assert f"live on: {job.pid} (sleep 60); nothing was started" in lock_owner.lift(own)
    finally:
        job.kill()
        job.wait()
    assert lock_owner.lift(own) is None and list(lock_owner.OWNERS.iterdir()) == [own]


def test_a_lock_that_nobody_noted_is_left_with_the_command_that_lifts_it(locked: Path) -> None:
    own = lock_owner.note_oneself()
    assert json.loads(own.read_text())["host"] == socket.gethostname()
    assert lock_owner.lift(own) is None and (locked / ".snakemake/locks/0.output.lock").exists()
    assert "left no note of itself; if none is at work here: snakemake " in lock_owner.explain(own)


def test_a_lock_that_another_has_is_one_line_of_snakemake_s(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("results/toy/prompts/shapes/train.jsonl\n")
    refused = toy.snakemake("--until", "prompts")
    assert refused.returncode == 1 and "Directory cannot be locked" not in refused.stdout
    assert f"{tmp_path}: locked by a snakemake that left no note of itself" in refused.stdout
    assert "--until prompts --unlock" in refused.stdout
