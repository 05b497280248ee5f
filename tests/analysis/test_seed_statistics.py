"""Estimates over seeds and prompts: closed forms, statsmodels' mixed model, coverage on simulated data with a known truth."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

from star.analysis import statistics
from star.analysis.statistics import (
    Cells,
    area_weights,
    bootstrap_epochs_to,
    cells,
    epochs_to,
    estimate,
    holm,
    mixed_model,
    seed_bootstrap,
    student,
)

TAGS = (5, 10, 7, 12, 30, 40)  # prompts of geneval's tags


def _cells(value_SP: np.ndarray, sizes: tuple[int, ...]) -> Cells:
    names = [str(i) for i in range(len(sizes))]
    return Cells(value_SP, np.repeat(names, sizes), dict.fromkeys(names, 1 / len(sizes)))


def _simulated(rng: np.random.Generator, seeds: int, sizes: tuple[int, ...], sd: tuple[float, float, float]) -> Cells:
    """Stratum i has the mean i; standard deviations between seeds, between prompts and of single cells."""
    prompts = sum(sizes)
    value_SP = rng.normal(0, sd[0], (seeds, 1)) + rng.normal(0, sd[1], prompts) + rng.normal(0, sd[2], (seeds, prompts))
    return _cells(value_SP + np.repeat(np.arange(len(sizes)), sizes), sizes)


def test_cells_are_means_over_images_and_refuse_gaps():
    rows = pd.DataFrame(
        [
            (seed, prompt, "ab"[prompt > 0], 10 * seed + prompt + image)
            for seed in (4, 7)
            for prompt in range(3)
            for image in (0, 1)
        ],
        columns=["seed", "prompt_id", "tag", "score"],
    )
    found = cells(rows, "score", "tag")
    assert found.value_SP.tolist() == [[40.5, 41.5, 42.5], [70.5, 71.5, 72.5]]
    assert found.stratum_P.tolist() == ["a", "b", "b"] and found.weights == {"a": 0.5, "b": 0.5}
    assert estimate(found) == pytest.approx((55.5 + 57) / 2)
    assert estimate(cells(rows, "score", None)) == pytest.approx(56.5)
    with pytest.raises(ValueError, match="every seed"):
        cells(rows.iloc[2:], "score", None)


def test_seeds_that_agree_leave_the_interval_of_prompts():
    rng = np.random.default_rng(0)
    of_prompt = rng.normal(size=200)
    found = mixed_model(_cells(np.tile(of_prompt, (5, 1)), (200,)))
    half = stats.t.ppf(0.975, 199) * of_prompt.std(ddof=1) / np.sqrt(200)
    assert [found.mean, found.low, found.high] == pytest.approx(
        [of_prompt.mean(), of_prompt.mean() - half, of_prompt.mean() + half]
    )
    assert found.p == pytest.approx(stats.ttest_1samp(of_prompt, 0).pvalue) and found.freedom == pytest.approx(199)
    assert seed_bootstrap(_cells(np.tile(of_prompt, (5, 1)), (200,))) == pytest.approx(
        (found.mean, found.low, found.high), abs=0.01
    )


def test_prompts_that_agree_leave_the_interval_of_seeds():
    of_seed = np.array([0.1, 0.4, 0.2, 0.5, 0.1])
    value_SP = np.tile(of_seed[:, None], (1, 50))
    found = mixed_model(_cells(value_SP, (50,)))
    exact = stats.ttest_1samp(of_seed, 0)
    assert [found.low, found.high] == pytest.approx(list(exact.confidence_interval(0.95)))
    assert found.p == pytest.approx(exact.pvalue) and found.freedom == pytest.approx(4)
    assert student(of_seed) == pytest.approx((found.mean, found.low, found.high))


@pytest.mark.parametrize("sizes", [(60,), (8, 20, 32)])
def test_the_mixed_model_is_that_of_statsmodels(sizes: tuple[int, ...]):
    found = _simulated(np.random.default_rng(3), 8, sizes, (0.4, 0.5, 0.3))
    seeds, prompts = found.value_SP.shape
    seed, prompt = np.repeat(np.arange(seeds), prompts), np.tile(np.arange(prompts), seeds)
    fixed = np.tile(np.eye(len(sizes))[found.stratum_P.astype(int)], (seeds, 1))
    effects = [[np.eye(seeds)[seed]], [np.eye(prompts)[prompt]]]
    names = [[[f"{i}" for i in range(effect[0].shape[1])]] for effect in effects]
    model = MixedLM(
        found.value_SP.ravel(), fixed, np.zeros(seeds * prompts), exog_vc=VCSpec(["seed", "prompt"], names, effects)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.fit(reml=True)
    assert theirs.converged
    weights, k = np.full(len(sizes), 1 / len(sizes)), len(sizes)
    error = np.sqrt(weights @ theirs.cov_params()[:k, :k] @ weights)
    ours = mixed_model(found)
    assert ours.mean == pytest.approx(weights @ theirs.fe_params)
    assert (ours.high - ours.low) / 2 / stats.t.ppf(0.975, ours.freedom) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize(
    ("sizes", "sd"),
    [((60,), (0.1, 0.1, 0.1)), ((60,), (0.03, 0.1, 0.3)), ((60,), (0.0, 0.3, 0.0)), (TAGS, (0.1, 0.1, 0.2))],
)
def test_intervals_cover_the_truth(sizes: tuple[int, ...], sd: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch):
    """Nominal 95 % with five seeds; 300 trials have a standard error of 1.3 %."""
    monkeypatch.setattr(statistics, "SEED_RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    truth, covered = (len(sizes) - 1) / 2, np.zeros(2)
    for _ in range(300):
        found = _simulated(rng, 5, sizes, sd)
        model, (_, low, high) = mixed_model(found), seed_bootstrap(found)
        covered += (low <= truth <= high, model.low <= truth <= model.high)
    assert (covered / 300 >= 0.91).all() and covered[1] / 300 <= 0.985


def test_contrasts_of_strata_leave_the_seeds_out():
    rng = np.random.default_rng(6)
    found = _simulated(rng, 5, (40, 40), (5.0, 0.2, 0.1))._replace(weights={"0": -1.0, "1": 1.0})
    ours, (_, low, high) = mixed_model(found), seed_bootstrap(found)
    one, other = found.value_SP[:, 40:].mean(0), found.value_SP[:, :40].mean(0)
    exact = stats.ttest_ind(one, other).confidence_interval(0.95)
    assert [ours.low, ours.high] == pytest.approx([exact.low, exact.high])
    assert ours.low < 1 < ours.high and high - low == pytest.approx(ours.high - ours.low, rel=0.15)


def test_what_cannot_be_estimated_has_no_interval():
    same = _cells(np.full((5, 6), 0.25), (6,))
    assert seed_bootstrap(same) == pytest.approx((0.25, 0.25, 0.25)) and mixed_model(same)[:4] == pytest.approx(
        (0.25, 0.25, 0.25, 0.0)
    )
    assert mixed_model(_cells(np.zeros((5, 6)), (6,))).p == 1.0
    one_seed = _cells(np.arange(6.0)[None], (6,))
    assert np.isnan(seed_bootstrap(one_seed)[1:]).all() and np.isnan(mixed_model(one_seed)[1:]).all()
    assert np.isnan(seed_bootstrap(_cells(np.random.default_rng(0).normal(size=(5, 7)), (6, 1)))[1:]).all()
    assert np.isnan(student(np.array([1.0]))[1:]).all()


def test_holm_steps_down():
    p = np.array([0.03, np.nan, 0.001, 0.04, 0.02])
    corrected, worst = dict.fromkeys(range(5), np.nan), 0.0
    for rank, i in enumerate(sorted((i for i in range(5) if i != 1), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (4 - rank) * p[i]))
        corrected[i] = worst
    assert holm(p) == pytest.approx(np.array(list(corrected.values())), nan_ok=True)
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_the_area_under_a_straight_line():
    epochs = np.array([0, 16, 24, 72])
    assert area_weights(epochs) @ (2 + 0.5 * epochs) == pytest.approx(2 + 0.5 * 36)


def test_epochs_to_a_threshold_lie_on_the_lines_between_checkpoints():
    epochs = np.array([0, 10, 30])
    curves = np.array([[0, 1, 2], [0, 2, 1], [0, 0.5, 0.9], [3, 0, 0], [0, 1, 1]])
    assert epochs_to(1.5, epochs, curves).tolist() == [20, 7.5, np.inf, 0, np.inf]
    assert epochs_to(1.0, epochs, curves).tolist() == [10, 5, np.inf, 0, 10]


def test_epochs_to_a_threshold_have_an_interval():
    rng = np.random.default_rng(8)
    noise_SP = rng.normal(0, 0.3, (5, 50))
    curves = [_cells(level + noise_SP, (50,)) for level in (0.0, 1.0, 2.0)]
    (at, low, high), reached = bootstrap_epochs_to(1.5, np.array([0, 10, 20]), curves)
    assert at == pytest.approx(15 - 10 * noise_SP.mean()) and low < at < high < 20 and reached == 1.0
    # Noise is the same at every checkpoint: a line of slope 0.1 an epoch, moved by the noise's mean, whose variance the
    # bootstrap of two crossed factors makes thrice as large.
    assert high - low == pytest.approx(10 * 2 * 1.96 * 0.3 * np.sqrt(3 / 250), rel=0.2)
    assert bootstrap_epochs_to(9.0, np.array([0, 10, 20]), curves) == ((np.inf, np.inf, np.inf), 0.0)
