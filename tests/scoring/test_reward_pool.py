"""The pool against direct scoring, in a thread and in processes, and when a worker is killed."""

import os
import signal
import time
from concurrent.futures import Future

import numpy as np
import pytest
from records import asked
from scorer_settings import scorers

from star.errors import InputError, ScorerFailed
from star.scoring import pool as pool_module
from star.scoring.pool import RewardPool
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import caption, descriptions
from star.worlds.miniature.scenes import compose, render

MODEL = "resources/miniature/pickscore"
SCORERS = scorers(geneval_detector="miniature", pickscore_model=MODEL, pickscore_processor=MODEL)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, list[dict]]:
    rng = np.random.default_rng(8)
    drawn = list(descriptions("position"))[:6]
    return np.stack([render(compose(d, rng)) for d in drawn]), [asked(caption(d), d) for d in drawn[::-1]]


def _kill_workers(pool: RewardPool) -> None:
    for worker in list(pool._executor._processes.values()):
        os.kill(worker.pid, signal.SIGKILL)


def _wait(done: Future) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return done.result(timeout=120)


@pytest.mark.parametrize("workers", [0, 1])
def test_equals_direct_scoring(workers: int, batch: tuple) -> None:
    reward = {"geneval": 0.75, "pickscore": 2.0}
    direct = {task: np.array([line["reward"] for line in make_scorer(task, SCORERS)(*batch)]) for task in reward}
    with RewardPool(reward, SCORERS, workers) as pool:
        jobs = [pool.submit(*batch), pool.submit(batch[0][:2], batch[1][:2])]
        (rewards, each), (first_two, _) = map(_wait, jobs)
    assert rewards.dtype == np.float64 and rewards.shape == (6,)
    assert each.keys() == direct.keys()
    for task in reward:
        assert np.allclose(each[task], direct[task], atol=1e-6)
    assert np.allclose(rewards, 0.75 * direct["geneval"] + 2.0 * direct["pickscore"], atol=1e-6)
    assert np.allclose(first_two, rewards[:2], atol=1e-6)
    assert rewards.std() > 0


def test_a_killed_worker_is_replaced_once(batch: tuple) -> None:
    with RewardPool({"geneval": 1.0}, SCORERS, 1) as pool:
        expected, _ = _wait(pool.submit(*batch))
        _kill_workers(pool)
        jobs = [pool.submit(*batch) for _ in range(3)]
        for job in jobs:
            assert np.array_equal(_wait(job)[0], expected)
        _kill_workers(pool)
        time.sleep(0.5)
        with pytest.raises(ScorerFailed, match=r"scoring process \(geneval\) died twice"):
            _wait(pool.submit(*batch))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_reach_the_caller(workers: int, batch: tuple) -> None:
    with RewardPool({"geneval": 1.0}, SCORERS, workers) as pool:
        with pytest.raises(InputError, match="include"):
            _wait(pool.submit(batch[0][:1], [asked("a thing")]))
        assert _wait(pool.submit(*batch))[0].shape == (6,)


@pytest.mark.parametrize("workers", [0, 1])
def test_all_prompts_are_checked_before_work(workers: int, batch: tuple) -> None:
    with RewardPool({"geneval": 0.5, "pickscore": 0.5}, SCORERS, workers) as pool:
        pool.check(batch[1])
        with pytest.raises(InputError, match="'a thing': its metadata needs"):
            pool.check([*batch[1], asked("a thing")])


def test_missing_weights_reach_the_caller(batch: tuple) -> None:
    absent = scorers(pickscore_model="no/such-folder-here/at-all", pickscore_processor=MODEL)
    with RewardPool({"pickscore": 1.0}, absent, 1) as pool, pytest.raises(InputError, match=r"pickscore\.model"):
        _wait(pool.submit(*batch))


def test_workers_are_light() -> None:
    with RewardPool({"geneval": 1.0}, SCORERS, 1) as pool:
        modules, threads = pool._executor.submit(_inside).result(timeout=120)
    assert "diffusers" not in modules and "torch" not in modules
    assert set(threads) == {"1"}


def _inside() -> tuple[list[str], list[str]]:
    import sys

    return list(sys.modules), [os.environ[name] for name in pool_module._THREAD_VARIABLES]
