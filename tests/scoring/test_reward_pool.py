"""The pool against direct scoring, in a thread and in processes, and when a worker is killed."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from records import asked
from scorer_settings import scorers

from star.errors import InputError, ScorerFailed
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import caption, descriptions
from star.worlds.miniature.scenes import compose, render

MODEL = "resources/miniature/pickscore"
SCORERS = scorers(geneval_detector="miniature", pickscore_model=MODEL, pickscore_processor=MODEL)
REWARD = {"geneval": 0.75, "pickscore": 2.0}


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, list[Prompt]]:
    rng = np.random.default_rng(8)
    drawn = list(descriptions("position"))[:6]
    return np.stack([render(compose(d, rng)) for d in drawn]), [asked(caption(d), d) for d in drawn[::-1]]


def _kill_workers(before: set[int | None]) -> None:
    """Kill the processes that were started since there were those of `before`."""
    for worker in multiprocessing.active_children():
        if worker.pid not in before:
            os.kill(worker.pid, signal.SIGKILL)


def _wait(done: Future) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return done.result(timeout=120)


@pytest.fixture(scope="module", params=[0, 1], ids=["thread", "process"])
def pool(request: pytest.FixtureRequest) -> Iterator[RewardPool]:
    """Two scorers in the background."""
    with RewardPool(REWARD, SCORERS, request.param) as opened:
        yield opened


def test_equals_direct_scoring(pool: RewardPool, batch: tuple) -> None:
    direct = {task: np.array([line.reward for line in make_scorer(task, SCORERS)(*batch)]) for task in REWARD}
    jobs = [pool.submit(*batch), pool.submit(batch[0][:2], batch[1][:2])]
    (rewards, each), (first_two, _) = map(_wait, jobs)
    assert rewards.dtype == np.float64 and rewards.shape == (6,)
    assert each.keys() == direct.keys()
    for task in REWARD:
        assert np.allclose(each[task], direct[task], atol=1e-6)
    assert np.allclose(rewards, 0.75 * direct["geneval"] + 2.0 * direct["pickscore"], atol=1e-6)
    assert np.allclose(first_two, rewards[:2], atol=1e-6)
    assert rewards.std() > 0


def test_a_killed_worker_is_replaced_once(batch: tuple) -> None:
    before = {worker.pid for worker in multiprocessing.active_children()}
    with RewardPool({"geneval": 1.0}, SCORERS, 1) as pool:
        expected, _ = _wait(pool.submit(*batch))
        _kill_workers(before)
        jobs = [pool.submit(*batch) for _ in range(3)]
        for job in jobs:
            assert np.array_equal(_wait(job)[0], expected)
        _kill_workers(before)
        time.sleep(0.5)
        with pytest.raises(ScorerFailed, match=r"scoring process \(geneval\) died twice"):
            _wait(pool.submit(*batch))


def test_bad_records_reach_the_caller(pool: RewardPool, batch: tuple) -> None:
    with pytest.raises(InputError, match="include"):
        _wait(pool.submit(batch[0][:1], [asked("a thing")]))
    assert _wait(pool.submit(*batch))[0].shape == (6,)


def test_all_prompts_are_checked_before_work(pool: RewardPool, batch: tuple) -> None:
    pool.check(batch[1])
    with pytest.raises(InputError, match="'a thing': its metadata needs"):
        pool.check([*batch[1], asked("a thing")])


def test_missing_weights_reach_the_caller(batch: tuple) -> None:
    absent = scorers(pickscore_model="no/such-folder-here/at-all", pickscore_processor=MODEL)
    with RewardPool({"pickscore": 1.0}, absent, 1) as pool, pytest.raises(InputError, match=r"pickscore\.model"):
        _wait(pool.submit(*batch))


def test_workers_are_light(batch: tuple) -> None:
    reward = {"geneval": 1.0, f"{__name__}:heaviness": 1.0}  # in this order
    with RewardPool(reward, SCORERS, 1) as pool:
        _, each = _wait(pool.submit(*batch))
    assert each[f"{__name__}:heaviness"].tolist() == [0] * len(batch[0])


def heaviness(images: np.ndarray, records: list[dict]) -> list[float]:
    """How many heavy packages the process has loaded, and how many variables let it use further threads."""
    loaded = {"torch", "diffusers"} & sys.modules.keys()
    threads = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
    return [len(loaded) + sum(number != "1" for number in threads)] * len(images)
