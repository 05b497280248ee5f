"""`star ui`: MLflow's pages of the runs in <results>/mlflow.db, on this machine only, as one server process.

MLflow's server would also start processes that run jobs for its other products. They are turned off.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from star.config import Config
from star.errors import InputError
from star.tracking import store

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl
_OF_TRAININGS = "workflowType=machine_learning"  # pages of runs and charts, not of traces, judges and prompts
_WAIT = 120.0  # seconds for the server to start, 10 to end


def serve(config: Config, port: int) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. No process is left behind, however this one ends.

    Raises InputError when the port is in use, and when runs are on another server.
    """
    address = store.uri(config)
    if not address.startswith("sqlite:///"):
        raise InputError(f"MLFLOW_TRACKING_URI: the runs are on {address}; open that in a browser, or unset the variable")
    _require_free(port)
    with store.client(config) as client:  # makes or checks the database
        experiments = [
            e for e in client.search_experiments(order_by=["last_update_time DESC"]) if store.KIND.items() <= e.tags.items()
        ]
    folder = Path(address.removeprefix("sqlite:///")).parent
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", address, "--default-artifact-root", str(folder / "mlartifacts")]
    without_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    said = folder / "mlflow-ui.log"
    with said.open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, env=os.environ | without_jobs, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent
        )
    try:
        if _wait_for(port, server, asked):
            print(f"MLflow runs until Ctrl-C at http://127.0.0.1:{port}/#/experiments?{_OF_TRAININGS}", flush=True)
            for experiment in experiments:
                page = f"experiments/{experiment.experiment_id}/runs?compareRunsMode=CHART&{_OF_TRAININGS}"
                print(f"{experiment.name}: http://127.0.0.1:{port}/#/{page}", flush=True)
            while server.poll() is None and not asked:
                time.sleep(0.2)
    finally:
        _end(server)
    if not asked:
        print(f"star ui: MLflow's server ended by itself ({server.returncode}); {said} says why", file=sys.stderr)
        return 1
    return 0


def _require_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"--port {port}: in use on this machine ({error.strerror}); choose another: `make ui PORT={port + 1}`, or "
                f"`star ui --port {port + 1}`"
            ) from None


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent is gone, were it killed."""
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGTERM)


def _wait_for(port: int, server: subprocess.Popen, asked: list[int]) -> bool:
    """Whether the server answers; not, when it ended or this process was asked to."""
    ends = time.monotonic() + _WAIT
    while server.poll() is None and not asked and time.monotonic() < ends:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def _end(server: subprocess.Popen) -> None:
    """End the server and every process of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
