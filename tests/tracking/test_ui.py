"""`star ui`: one server, a port in use is named, and nothing is left behind however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from star.cli import main
from star.config import load
from star.tracking import store

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(folder: Path) -> tuple[subprocess.Popen, list[psutil.Process], list[str]]:
    """A running `star ui`, the processes below it, and what it printed."""
    port = _free_port()
    command = [sys.executable, "-m", "star.cli", "ui", "--set", f"results={folder}", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=_environment())
    said = [process.stdout.readline()]
    assert said == [f"MLflow runs until Ctrl-C at http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning\n"]
    for _ in range(100):
        try:
            assert urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
            break
        except OSError:
            time.sleep(0.2)
    return process, psutil.Process(process.pid).children(recursive=True), [*said, process.stdout.readline()]


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_processes_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    config = load(ROOT / "config/miniature.yaml", [f"results={tmp_path}"])
    with store.client(config) as client:
        made = store.experiment(client, config, "miniature-letters", "about")
        client.create_experiment("of another kind")
    process, children, said = _serve(tmp_path)
    assert f"/#/experiments/{made}/runs?compareRunsMode=CHART" in said[1] and said[1].startswith("miniature-letters: ")
    assert len(children) <= 2, [child.cmdline() for child in children]  # mlflow and its one server
    process.send_signal(number)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive and len(gone) == len(children)
    assert process.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else 0)


def test_a_port_in_use_is_named_with_another(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port), "--set", f"results={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"star ui: --port {port}: in use on this machine") and f"make ui PORT={port + 1}" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert main(["ui", "--set", f"results={tmp_path}"]) == 2
    assert "the runs are on http://tracking.example" in capsys.readouterr().err
