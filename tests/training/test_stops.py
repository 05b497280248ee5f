"""Ctrl-C, a second training in the same folder, a disk that takes no more, metrics after an accident."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from trainings import SMALL, metrics, train

from star import cli
from star import config as configuration
from star.errors import InputError
from star.training import folder

ROOT = Path(__file__).parents[2]
LONG = ("training.epochs=40", "checkpoints.every=40", "scorers.workers=1")  # no state is written on the way


def _command(place: Path, base: Path, *more: str) -> list[str]:
    place.mkdir(parents=True, exist_ok=True)
    config = configuration.load(ROOT / "config/miniature.yaml", [*SMALL, f"policy.model={base}", *more])
    (place / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "star.cli", "train", "--config", str(place / "config.yaml"), "--task", "preference"]
    return [*command, "--method", "flow_grpo", "--out", str(place / "run")]


def _start(
    command: list[str], before: Callable[[], object] = lambda: None, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` around the tests would be inherited
        before()

    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
    )


def _until_epochs(process: subprocess.Popen, run: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= count):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.stderr.read())
        time.sleep(0.02)


def test_ctrl_c_saves_the_last_whole_epoch_and_no_two_train_in_one_folder(random_base: Path, tmp_path: Path) -> None:
    command, run = _command(tmp_path, random_base, *LONG), tmp_path / "run"
    training = _start(command)
    _until_epochs(training, run, 1)
    with pytest.raises(InputError, match=f"{run}: another training is at work in this folder"), folder.held(run):
        pass

    os.killpg(training.pid, signal.SIGINT)  # as a terminal does: the scorers' processes get it too
    _, said = training.communicate(timeout=200)
    done = len(metrics(run))
    assert training.returncode == 75 and "Traceback" not in said
    assert f"star train: stopped by Ctrl-C in epoch {done + 1}; the same command goes on from epoch {done}" in said
    assert [place.name for place in (run / "checkpoints").glob("epoch*")] == [f"epoch{done:04d}"]
    with folder.held(run):  # is free again
        pass


STOPPED = """
import os, signal
from star.training.processes import Processes
processes = Processes()
with processes.watching():
    for number in {numbers}:
        os.kill(os.getpid(), number)
    try:
        processes.stop_if_asked()
    except Exception as stop:
        print(type(stop).__name__, stop)
"""


@pytest.mark.parametrize(
    ("numbers", "said", "code"),
    [
        ((signal.SIGINT,), "Preempted stopped by Ctrl-C\n", 0),
        ((signal.SIGHUP,), "Preempted stopped by the closed terminal\n", 0),
        ((signal.SIGINT, signal.SIGINT), "", -signal.SIGINT),
        ((signal.SIGTERM, signal.SIGINT), "Preempted stopped by SIGTERM\n", 0),
    ],
)
def test_a_second_ctrl_c_ends_at_once(numbers: tuple[int, ...], said: str, code: int) -> None:
    process = _start(
        [sys.executable, "-c", STOPPED.format(numbers=[int(number) for number in numbers])], stdout=subprocess.PIPE
    )
    printed, _ = process.communicate(timeout=200)
    assert (printed, process.returncode) == (said, code)


def test_nohup_keeps_a_training_from_the_closed_terminal() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = _start([sys.executable, "-c", STOPPED.format(numbers=[int(signal.SIGHUP)])], ignore, stdout=subprocess.PIPE)
    assert process.communicate(timeout=200)[0] == ""


def test_ctrl_c_elsewhere_is_one_line_and_exit_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("star.scoring.folder.score_folders", interrupted)
    monkeypatch.chdir(ROOT)
    try:
        assert cli.main(["score", "--scorer", "ocr", "--images", "x", "--out", str(tmp_path / "s.jsonl")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "star score: stopped by Ctrl-C\n"


def test_a_disk_that_takes_no_more_is_one_line_and_the_same_command_goes_on(random_base: Path, tmp_path: Path) -> None:
    command, run = _command(tmp_path, random_base, "training.epochs=2", "tracking.prompts=0"), tmp_path / "run"
    most = 40_000  # bytes of a file, less than a state's weights
    process = _start(command, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(f"star train: {run}/checkpoints/epoch0001: not written (")
    assert list((run / "checkpoints").iterdir()) == [] and len(metrics(run)) == 1
    process = _start(command)
    process.communicate(timeout=300)
    assert process.returncode == 0 and [row["epoch"] for row in metrics(run)] == [1, 2]


def test_a_disk_without_room_for_the_states_is_refused_before_work(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(InputError, match="needed for checkpoints; "):
        train(random_base, tmp_path / "run", "flow_grpo")
    assert not (tmp_path / "run/settings.json").exists()


def test_metrics_are_kept_by_the_epochs_that_they_name(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [{"epoch": 2, "of": "the other"}, {"epoch": 1}, {"epoch": 2}, {"epoch": 3}, {"epoch": 4}]
    file.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + b"\0\0\0\n" + b'{"epoch": 5')
    folder.keep_epochs(file, 3)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    with pytest.raises(InputError, match=r"metrics\.jsonl: no line of epoch 4, 5, but a checkpoint of epoch 5"):
        folder.keep_epochs(file, 5)
    folder.keep_epochs(file, 0)
    assert file.read_text() == ""


@pytest.mark.parametrize(
    ("stage", "place"),
    [("score", "/proc/here/scores.jsonl"), ("score", "folder"), ("sample", "file"), ("train", "file/run")],
)
def test_an_output_that_cannot_be_written_is_said_before_work(
    stage: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(ROOT)
    needed = {
        "score": ["--scorer", "ocr", "--images", "none"],
        "sample": ["--prompts", "none.jsonl"],
        "train": ["--task", "letters", "--method", "star"],
    }
    out = tmp_path / place
    assert cli.main([stage, *needed[stage], "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"star {stage}: {out}: ") and said.count("\n") == 1
