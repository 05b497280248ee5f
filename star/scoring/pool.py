"""Score batches in worker processes while the policy samples.

Workers are spawned, import no policy code and use one thread each. This module imports nothing heavy, so that a worker can
set its thread counts before numpy and torch read them.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

from star.config import Scorers
from star.errors import ScorerFailed
from star.prompts.record import Prompt
from star.scoring.scorer import Scorer, make_scorer

if TYPE_CHECKING:
    import numpy as np

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # are the trainer's, which ends its workers after itself


@contextmanager
def _without_stops() -> Iterator[None]:
    """Hold signals back from processes that are started inside, which would meet them while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"), OMP_WAIT_POLICY="PASSIVE", TQDM_DISABLE="1")


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent_process().join()
    os._exit(1)


@cache
def _scorer(task: str, scorers: str) -> Scorer:
    return make_scorer(task, Scorers.model_validate_json(scorers))


def _score(weights: dict[str, float], scorers: str, images: "np.ndarray", records: Sequence[Prompt]) -> tuple:
    """(weighted rewards float64 [B], the rewards of every scorer by task)."""
    import numpy as np

    each = {}
    for task in weights:
        scored = _scorer(task, scorers)(images, records) if len(records) else []
        each[task] = np.array([one.reward for one in scored], np.float64)
    return sum(weight * each[task] for task, weight in weights.items()), each


def _check(weights: dict[str, float], scorers: str, records: Sequence[Prompt]) -> None:
    for task in weights:
        _scorer(task, scorers).check(records)


class RewardPool:
    """A context manager that scores batches in `workers` processes, or in one background thread for `workers` 0.

    `reward` maps scorers to weights; a batch's reward is the weighted sum. Scorers are built when the pool opens, beside
    whatever the caller does next. A worker process that dies is replaced once in the pool's life, and its batches are
    scored again.
    """

    def __init__(self, reward: dict[str, float], scorers: Scorers, workers: int) -> None:
        self._weights, self._scorers, self._workers = dict(reward), scorers.model_dump_json(), workers
        self._lock = threading.Lock()
        self._restarted = False
        self._executor = self._open()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def check(self, records: Sequence[Prompt]) -> None:
        """Wait until the scorers are built, and raise InputError when one of them cannot score one of the records."""
        result: Future = Future()
        self._send(result, _check, records)
        result.result()

    def submit(self, images: "Sequence[np.ndarray]", records: Sequence[Prompt]) -> Future:
        """Score uint8 pictures [B] of [H, W, 3] and their prompt records.

        The future's result is (rewards float64 [B], {scorer: rewards float64 [B]}). It raises what the scorer raised
        (InputError for bad records or missing weights), or ScorerFailed when a worker died twice.
        """
        result: Future = Future()
        self._send(result, _score, images, records)
        return result

    def _open(self) -> Executor:
        if self._workers == 0:
            executor: Executor = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        else:
            executor = ProcessPoolExecutor(self._workers, get_context("spawn"), _start_worker)
        with _without_stops():
            for _ in range(max(1, self._workers)):
                executor.submit(_check, self._weights, self._scorers, ())
        return executor

    def _send(self, result: Future, work: Callable, *arguments: object) -> None:
        with self._lock:
            executor = self._executor
        try:
            done = executor.submit(work, self._weights, self._scorers, *arguments)
        except BrokenProcessPool:
            self._again(executor, result, work, *arguments)
            return

        def finish(done: Future) -> None:
            if done.cancelled():
                result.cancel()
            elif isinstance(done.exception(), BrokenProcessPool):
                self._again(executor, result, work, *arguments)
            elif done.exception() is not None:
                result.set_exception(done.exception())
            else:
                result.set_result(done.result())

        done.add_done_callback(finish)

    def _again(self, broken: Executor, result: Future, work: Callable, *arguments: object) -> None:
        with self._lock:
            if self._executor is broken and not self._restarted:
                self._restarted = True
                self._executor = self._open()
            replaced = self._executor is not broken
        if replaced:
            self._send(result, work, *arguments)
        else:
            tasks = ", ".join(self._weights)
            result.set_exception(
                ScorerFailed(
                    f"a scoring process ({tasks}) died twice, out of memory perhaps; fewer scorers.workers need less, and the "
                    "same command goes on from the last checkpoint"
                )
            )
