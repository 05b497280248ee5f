"""A training watched in MLflow while it goes on: two threads that never block, slow or end it.

The training writes its files and calls `wake`. One thread brings MLflow up to date with the files (star.tracking.mirror). What
could not be sent is still in them, and goes with the next epoch or with `star log`. The other thread looks at the machine.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from star.config import Config
from star.errors import Preempted
from star.layout import Run
from star.tracking import store

if TYPE_CHECKING:
    from star.tracking.mirror import Mirror

PAUSE = 2.0  # seconds at least between two updates
PATIENCE = 10.0  # seconds that the end of a training waits for the last update, and an update for the lock


class Live:
    """A context manager around the epochs of a training; does nothing where `tracking.live` is off."""

    def __init__(self, config: Config, task: str, method: str, seed: int, run: Path) -> None:
        self._config, self._name, self._run = config, (task, method, seed), Run(Path(run))
        self._news, self._closing = threading.Event(), threading.Event()
        self._status: str | None = None  # of the MLflow run, once the training has ended
        self._complaint: str | None = None
        self._threads: list[threading.Thread] = []
        self.sent = 0  # values
        self.seconds: dict[str, float] = {}  # of processor time, by thread

    def __enter__(self) -> "Live":
        tracking = self._config.tracking
        if not tracking.live:
            return self
        if why := store.unsafe_while_training(self._config):
            print(f"not sent to MLflow while training: {why}; `star log` sends it at the end", file=sys.stderr, flush=True)
            return self
        if not self._run.metrics.is_file() or not self._run.metrics.stat().st_size:  # begun anew
            self._run.system.unlink(missing_ok=True)
        # A server that is away is not waited for: the next epoch tries again.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        loops = [self._send] + ([self._look_at_machine] if tracking.system_every else [])
        self._threads = [threading.Thread(target=loop, daemon=True, name=f"mlflow {loop.__name__}") for loop in loops]
        for thread in self._threads:
            thread.start()
        return self

    def wake(self) -> None:
        """There is a new epoch in the files."""
        self._news.set()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, Preempted) else "FAILED"
        self._closing.set()
        self._news.set()
        if not self._threads:
            return
        self._threads[0].join(PATIENCE)
        if self._threads[0].is_alive() or self._complaint:
            print("not everything was sent to MLflow; `star log` sends the rest", file=sys.stderr, flush=True)

    def _send(self) -> None:
        mirror: Mirror | None = None
        while self._news.wait():
            self._news.clear()
            status = self._status  # read before the files are: when it is there, they are complete
            try:
                mirror = mirror or self._mirror()
                with store.client(self._config, PATIENCE) as client:
                    self.sent += mirror.update(client)
                    if status is not None:
                        client.set_terminated(mirror.run_id, status)
                self._complaint = None
            except Exception as error:  # whatever it is: it must not end the training, and the files keep what was not sent
                if mirror is not None:
                    mirror.forget()
                self._complain(error)
            self.seconds["send"] = time.thread_time()
            if status is not None:
                return
            self._closing.wait(PAUSE)

    def _mirror(self) -> "Mirror":
        from star.tracking.mirror import Mirror  # takes seconds, which are this thread's

        task, method, seed = self._name
        return Mirror(self._config, task, method, seed=seed, run=self._run.folder)

    def _complain(self, error: Exception) -> None:
        """Say it once until something was sent again."""
        if self._complaint is None:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"not sent to MLflow ({store.uri(self._config)}), kept for later: {said}", file=sys.stderr, flush=True)
        self._complaint = str(error)

    def _look_at_machine(self) -> None:
        try:
            monitors = _monitors()
            while not self._closing.wait(self._config.tracking.system_every):
                row = {"time": int(1000 * time.time())}
                for monitor in monitors:
                    monitor.collect_metrics()
                    row |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
                with self._run.system.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self.seconds["look"] = time.thread_time()
                self._news.set()
        except Exception as error:  # as above
            print(f"no longer looking at the machine: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _monitors() -> list:
    """MLflow's own monitors of processor and memory, and of the GPUs where there are any."""
    import torch
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    first = CPUMonitor()
    first.collect_metrics()  # the processor's share counts from here
    first.clear_metrics()
    return [first, *([GPUMonitor()] if torch.cuda.is_available() else [])]
