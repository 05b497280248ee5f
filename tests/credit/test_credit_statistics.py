"""Estimates of credit: against a problem whose true gradient is known, and against explicit loops over pairs of batches.

Shapes: K batches, S steps, D dimensions.
"""

import numpy as np
import pytest

from star.credit import statistics as credit
from star.credit.projection import Projection

TRUE_SD = np.array([[3.0, 0.0, 0.0, 0.0], [0.0, 1.5, 0.5, 0.0]])  # the true gradient of two steps
SPREAD_S = np.array([1.0, 3.0])  # standard deviation of every coordinate
GAIN_S = np.array([2.0, 0.5])  # what the other allocation multiplies the steps by
SCALE_D = np.array([1.0, 0.5, 2.0, 1.0])  # AdamW's


def drawn(batches: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [K, S, D] of the scalar objective, and of an allocation that multiplies steps and has noise of its own."""
    scalar = TRUE_SD + SPREAD_S[:, None] * rng.standard_normal((batches, 2, 4))
    return scalar, GAIN_S[:, None] * TRUE_SD + SPREAD_S[:, None] * rng.standard_normal((batches, 2, 4))


def products(gradient_KSD: np.ndarray, scalar_KSD: np.ndarray) -> credit.Products:
    in_scale = gradient_KSD * SCALE_D
    place_KTS = np.tile(np.eye(2), (len(gradient_KSD), 1, 1))
    return credit.products(gradient_KSD, scalar_KSD, scalar_KSD * SCALE_D, in_scale @ in_scale.transpose(0, 2, 1), place_KTS)


def sums(gradient_KSD: np.ndarray, scalar_KSD: np.ndarray, resamples: credit.Resamples) -> credit.Sums:
    return credit.weighed(
        credit.moments(products(gradient_KSD, scalar_KSD), resamples, np.ones(2)), np.ones((len(resamples.count_RK), 2))
    )


def truth(gain_S: np.ndarray) -> credit.Sums:
    """What the moments are in expectation."""
    expected, true = (gain_S[:, None] * TRUE_SD).sum(0), TRUE_SD.sum(0)
    variance = (SPREAD_S**2).sum()
    return credit.Sums(
        signal=np.array([expected @ true]),
        noise=np.array([expected @ expected + 4 * variance]),
        mean=np.array([expected @ expected]),
        scaled_signal=np.array([expected @ (SCALE_D * true)]),
        scaled_noise=np.array([((SCALE_D * expected) ** 2).sum() + (SCALE_D**2).sum() * variance]),
    )


def test_estimates_are_unbiased() -> None:
    rng, once = np.random.default_rng(0), credit.Resamples(np.ones((1, 5)))
    found = [vars(sums(*drawn(5, rng)[::-1], once)) for _ in range(1500)]
    for name, expected in vars(truth(GAIN_S)).items():
        values = np.array([one[name][0] for one in found])
        assert abs(values.mean() - expected[0]) < 3.5 * values.std() / np.sqrt(len(values)), name


def test_the_quantities_are_what_the_true_moments_give() -> None:
    one, scalar = truth(GAIN_S), truth(np.ones(2))
    expected, true = (GAIN_S[:, None] * TRUE_SD).sum(0), TRUE_SD.sum(0)
    assert credit.cosine(one, scalar)[0] == pytest.approx(expected @ true / np.linalg.norm(true) / np.sqrt(one.noise[0]))
    assert credit.efficiency(one, scalar)[0] == pytest.approx(
        (credit.cosine(one, scalar) / credit.cosine(scalar, scalar))[0] ** 2
    )
    along = (expected @ true) ** 2 / (true @ true)
    assert credit.bias(one, scalar)[0] == pytest.approx(1 - along / (expected @ expected))
    assert credit.bias(scalar, scalar)[0] == pytest.approx(0)
    steps = [
        expected @ (SCALE_D * true) / np.sqrt(one.scaled_noise[0]),
        true @ (SCALE_D * true) / np.sqrt(scalar.scaled_noise[0]),
    ]
    assert credit.gain(one, scalar)[0] == pytest.approx(steps[0] / steps[1])


def test_intervals_cover_the_truth() -> None:
    rng, expected = np.random.default_rng(1), credit.efficiency(truth(GAIN_S), truth(np.ones(2)))[0]
    covered = []
    for seed in range(100):
        scalar, other = drawn(40, rng)
        resamples = credit.Resamples.draw(40, 300, seed)
        _, low, high = credit.interval(credit.efficiency(sums(other, scalar, resamples), sums(scalar, scalar, resamples)))
        covered.append(low <= expected <= high)
    assert 0.87 <= np.mean(covered) <= 0.99


def test_moments_are_those_of_explicit_loops() -> None:
    rng = np.random.default_rng(2)
    batches, steps_KT = 6, np.array([[0, 1], [1, 3], [0, 1], [3, 0], [1, 0], [0, 3]])
    known = [0, 1, 3]
    one_KTD, scalar_KTD = rng.standard_normal((2, batches, 2, 5))
    scale_D = rng.random(5)
    place_KTS = (steps_KT[:, :, None] == np.array(known)).astype(float)
    in_scale = one_KTD * scale_D
    of = credit.products(one_KTD, scalar_KTD, scalar_KTD * scale_D, in_scale @ in_scale.transpose(0, 2, 1), place_KTS)
    resamples = credit.Resamples.draw(batches, 3, seed=5)
    towards_S = np.array([1.0, 0.5, 2.0])
    found = credit.moments(of, resamples, towards_S)
    for r, count_K in enumerate(resamples.count_RK):
        pairs = [(i, j, count_K[i] * count_K[j]) for i in range(batches) for j in range(batches) if i != j]
        total = sum(weight for _, _, weight in pairs)
        for s, step in enumerate(known):
            signal = step_signal = scaled_signal = 0.0
            for i, j, weight in pairs:
                for t in range(2):
                    for u in range(2):
                        if steps_KT[i, t] == step:
                            inner = one_KTD[i, t] @ scalar_KTD[j, u]
                            toward = towards_S[known.index(steps_KT[j, u])]
                            signal += weight / total * inner * toward
                            step_signal += weight / total * inner * (steps_KT[j, u] == step)
                            scaled_signal += weight / total * toward * (one_KTD[i, t] @ (scale_D * scalar_KTD[j, u]))
            assert found.signal[r, s] == pytest.approx(signal)
            assert found.step_signal[r, s] == pytest.approx(step_signal)
            assert found.scaled_signal[r, s] == pytest.approx(scaled_signal)
            for v, other in enumerate(known):
                noise = mean = scaled_noise = 0.0
                for t in range(2):
                    for u in range(2):
                        for i in range(batches):
                            if (steps_KT[i, t], steps_KT[i, u]) == (step, other):
                                noise += count_K[i] / batches * (one_KTD[i, t] @ one_KTD[i, u])
                                scaled_noise += count_K[i] / batches * (in_scale[i, t] @ in_scale[i, u])
                        for i, j, weight in pairs:
                            if (steps_KT[i, t], steps_KT[j, u]) == (step, other):
                                mean += weight / total * (one_KTD[i, t] @ one_KTD[j, u])
                assert found.noise[r, s, v] == pytest.approx(noise)
                assert found.mean[r, s, v] == pytest.approx(mean)
                assert found.scaled_noise[r, s, v] == pytest.approx(scaled_noise)


def test_weights_scale_steps_to_equal_noise_and_find_the_best() -> None:
    rng = np.random.default_rng(3)
    scalar, _ = drawn(400, rng)
    once = credit.Resamples(np.ones((1, 400)))
    moments = credit.moments(products(scalar, scalar), once, np.ones(2))
    equal_noise, measured = (credit.weights(rule, moments, moments, np.ones(2)) for rule in ("equal_noise", "measured"))
    sizes = equal_noise[0] * np.sqrt((scalar**2).sum(2).mean(0))
    assert sizes[0] == pytest.approx(sizes[1]) and equal_noise.mean() == pytest.approx(1) == pytest.approx(measured.mean())
    base = credit.weighed(moments, np.ones((1, 2)))
    tried = [credit.efficiency(credit.weighed(moments, np.array([[w, 2 - w]])), base)[0] for w in np.linspace(0, 2, 81)]
    # Best where the noise of the steps is independent, which it is but for the sample's own correlations.
    assert credit.efficiency(credit.weighed(moments, measured), base)[0] > 0.97 * max(tried) > 1.2


def test_an_interval_says_where_it_is_undefined() -> None:
    value_R = np.concatenate([[1.0], np.linspace(0, 2, 100)])
    assert credit.interval(value_R) == (1.0, pytest.approx(0.04, abs=0.03), pytest.approx(1.96, abs=0.03))
    value_R[1:6] = np.nan
    assert np.isnan(credit.interval(value_R)[1:]).all()
    assert not credit.measurable(value_R) and credit.measurable(np.ones(101)) and not credit.measurable(-np.ones(101))


def test_a_projection_keeps_inner_products_within_its_error() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    project = Projection(5001, 250, torch.device("cpu"))
    a, b = torch.randn(2, 400, 5001, generator=generator)
    b += a / 2
    error = [(project(x) @ project(y) - (x.double() @ y.double())).item() for x, y in zip(a, b, strict=True)]
    size = (a.norm(dim=1) * b.norm(dim=1)).mean().item()
    assert abs(np.mean(error)) < 3.5 * np.std(error) / 20
    assert 0.5 < np.std(error) / (size * np.sqrt(2 / 250)) < 1.05
    exact = Projection(7, 100, torch.device("cpu"))
    assert exact.dimensions == 7 and torch.equal(exact(torch.arange(7.0)), torch.arange(7.0, dtype=torch.float64))
