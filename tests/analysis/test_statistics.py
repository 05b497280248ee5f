"""Intervals against closed forms, against scipy's bootstrap, and by their coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from star.analysis.statistics import difference, overall, prompt_bootstrap, summary


def _clustered(rng: np.random.Generator, prompts: int, images: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Values with a prompt's own difficulty (sd 1) and noise within the prompt (sd 0.5)."""
    values = mean + rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.5, (prompts, images))
    return values.ravel(), np.repeat(np.arange(prompts), images)


def test_constant_values_have_an_interval_of_no_width():
    assert prompt_bootstrap(np.full(12, 0.25), np.repeat(np.arange(6), 2)) == (0.25, 0.25, 0.25)


def test_shares_follow_the_binomial_distribution():
    right = np.arange(101) < 40
    mean, low, high = prompt_bootstrap(right.astype(float), np.arange(101))
    exact = stats.binom(100, 40 / 101)  # 100 draws from 101 prompts
    assert mean == pytest.approx(40 / 101)
    assert [low, high] == pytest.approx([exact.ppf(0.025) / 100, exact.ppf(0.975) / 100], abs=0.0101)


def test_images_of_a_prompt_are_one_observation():
    values = np.repeat(np.random.default_rng(1).normal(size=30), 50)
    many = prompt_bootstrap(values, np.repeat(np.arange(30), 50))
    assert many == pytest.approx(prompt_bootstrap(values[::50], np.arange(30)))


def test_small_strata_have_the_width_of_the_closed_form():
    rng = np.random.default_rng(2)
    sizes = (5, 6, 8, 10, 24, 24)
    x = [rng.normal(size=n) for n in sizes]
    strata = np.repeat(np.arange(6), sizes)
    mean, low, high = prompt_bootstrap(np.concatenate(x), np.arange(len(strata)), strata)
    error = np.sqrt(sum(np.var(v, ddof=1) / len(v) for v in x)) / 6
    assert mean == pytest.approx(np.mean([v.mean() for v in x]))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_agrees_with_scipys_bootstrap_where_strata_are_large():
    rng = np.random.default_rng(3)
    a, b = rng.exponential(size=400), rng.normal(2, 1, 600)
    ours = prompt_bootstrap(np.concatenate([a, b]), np.arange(1000), np.repeat([0, 1], [400, 600]))
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: (x.mean(axis=axis) + y.mean(axis=axis)) / 2,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=0.004)  # a twentieth of the width


@pytest.mark.parametrize("sizes", [(40,), (5, 8, 6, 10, 24, 24)])
def test_intervals_cover_the_truth(sizes: tuple[int, ...]):
    """Nominal 95 %; 300 trials have a standard error of 1.3 %."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        parts = [_clustered(rng, n, 4, mean=i) for i, n in enumerate(sizes)]
        strata = np.repeat(np.arange(len(sizes)), [len(v) for v, _ in parts])
        prompts = np.concatenate([p for _, p in parts])
        _, low, high = prompt_bootstrap(np.concatenate([v for v, _ in parts]), prompts, strata)
        covered += low <= (len(sizes) - 1) / 2 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_a_stratum_of_one_prompt_has_no_interval():
    mean, low, high = prompt_bootstrap(np.array([1.0, 0.0, 1.0]), np.arange(3), np.array([0, 0, 1]))
    assert mean == 0.75
    assert np.isnan([low, high]).all()


def _scores(tags: list[str], score: list[float]) -> pd.DataFrame:
    prompt_id = [f"p{i:02d}" for i in range(len(tags))]
    return pd.DataFrame({"tag": tags, "prompt_id": prompt_id, "score": score, "seed": 0, "sample": 0})


def test_geneval_is_the_unweighted_mean_of_its_tags():
    scores = _scores(["a", "a", "b", "b", "b", "b", "b", "b"], [1, 1, 0, 0, 0, 0, 0, 1])
    assert summary("geneval", scores)["mean"] == overall("geneval", scores) == pytest.approx((1 + 1 / 6) / 2)
    assert summary("ocr", scores)["mean"] == overall("ocr", scores) == pytest.approx(3 / 8)
    assert summary("geneval", scores)["n"] == 8


def test_differences_are_paired_whatever_the_order_of_rows():
    rng = np.random.default_rng(6)
    reference = _scores(["a"] * 20, list(rng.normal(0, 100, 20)))
    better = reference.assign(score=reference["score"] + 0.5).sample(frac=1, random_state=7)
    paired = difference("ocr", better, reference)
    assert list(paired.values()) == pytest.approx([0.5, 0.5, 0.5, 20])


def test_differences_refuse_other_prompts():
    reference = _scores(["a"] * 4, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="cannot be paired"):
        difference("ocr", reference.iloc[:3], reference)
