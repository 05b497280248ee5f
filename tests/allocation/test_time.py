"""Weights of steps: against the best weights in closed form, by hand, and never another total than one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.allocation.time import DECAY, LEAST, Measured, shared_out, step_weights

FLAT = np.ones(3)


def _told(signal: list[float], noise: list[float], updates: int, size: int = 4000) -> Measured:
    """What updates tell of steps whose gradients are `signal` along the momentum and Gaussian noise around it."""
    rng, measured = np.random.default_rng(0), Measured.nothing(len(signal))
    for _ in range(updates):
        for step, (s, n) in enumerate(zip(signal, noise, strict=True)):
            along, across = s + rng.standard_normal() * n / size**0.5, n * (rng.chisquare(size - 1) / size) ** 0.5
            measured.observe(step, (along**2 + across**2) ** 0.5, along)
    return measured


def _weights(time: object, measured: Measured, steps: range = range(3), predicted: np.ndarray = FLAT) -> np.ndarray:
    return np.array(step_weights(time, steps, first=0, predicted=predicted, measured=measured))


def test_measured_weights_are_the_best_ones_in_closed_form() -> None:
    """The cosine of sum w g with the whole signal is largest at w = signal / noise^2, if the noises are independent."""
    signal, noise = [0.3, 0.5, 0.2], [0.18, 0.48, 0.85]
    measured = _told(signal, noise, updates=400)
    rms = np.sqrt(np.array(signal) ** 2 + np.array(noise) ** 2)  # what a norm can measure
    for time, best in {"equal_noise": 1 / rms, "snr": signal / rms, "measured": signal / rms**2}.items():
        np.testing.assert_allclose(_weights(time, measured), best / best.mean(), rtol=0.06)


def test_weights_follow_the_coefficients_before_there_is_data_and_the_scale_of_the_data_then() -> None:
    predicted, nothing = np.array([1.0, 2.0, 4.0, 8.0]), Measured.nothing(4)
    expected = np.array([8, 4, 2]) / np.mean([8, 4, 2])
    np.testing.assert_allclose(_weights("equal_noise", nothing, range(3), predicted), expected)
    np.testing.assert_allclose(_weights("measured", nothing, range(3), predicted), expected)
    assert _weights("snr", nothing, range(3), predicted).tolist() == [1, 1, 1]
    nothing.observe(1, 20.0, None)
    nothing.observe(2, 10.0, None)  # sqrt(20 / 2 x 10 / 4) = 5 times the prediction
    np.testing.assert_allclose(nothing.noise(predicted), [5, 20, 10, 40])


def test_a_signal_that_is_all_noise_leaves_the_weights_as_they_were() -> None:
    measured = _told([0.01] * 3, [1.0, 2.0, 3.0], updates=12)
    noise = measured.noise(FLAT)
    for time, without in {"measured": 1 / noise, "snr": np.ones(3)}.items():
        found = _weights(time, measured)
        assert np.abs(found / (without / without.mean()) - 1).max() < 0.5
    against = _told([-0.5] * 3, [1.0, 1.0, 1.0], updates=40)
    assert against.ratio(against.noise(FLAT)) is None  # no signal along the momentum
    np.testing.assert_allclose(_weights("measured", against), 1 / noise * 0 + 1, rtol=0.05)


def test_a_step_without_signal_keeps_what_it_needs_to_be_measured_again() -> None:
    found = _weights("measured", _told([0.5, 0.5, -0.5], [1.0, 1.0, 1.0], updates=400))
    assert found[2] == pytest.approx(LEAST * found.mean() / (2 / 3 * 1.5 + LEAST / 3), rel=0.05) and found.mean() == 1


def test_old_updates_are_forgotten() -> None:
    measured = Measured.nothing(1)
    for norm in (3.0, 1.0, 1.0):
        measured.observe(0, norm, None)
    mean_square = (9 * DECAY**2 + DECAY + 1) / (DECAY**2 + DECAY + 1)
    assert measured.noise(np.ones(1)) == pytest.approx([mean_square**0.5])


@settings(deadline=None)
@given(
    st.sampled_from(["equal", "equal_noise", "measured", "snr", [0.0, 1.0, 5.0, 2.0]]),
    st.lists(st.tuples(st.integers(0, 4), st.floats(1e-6, 1e6), st.floats(-1, 1)), max_size=30),
    st.integers(1, 4),
)
def test_weights_have_mean_one(time: object, seen: list[tuple[int, float, float]], start: int) -> None:
    measured = Measured.nothing(5)
    for step, norm, cosine in seen:
        measured.observe(step, norm, cosine * norm)
    weights = step_weights(time, range(start, 5), first=1, predicted=np.arange(1.0, 6.0), measured=measured)
    assert all(np.isfinite(w) and w >= 0 for w in weights) and np.mean(weights) == pytest.approx(1.0)


def test_numbers_are_those_of_the_steps_that_are_trained() -> None:
    numbers = [4.0, 2.0, 1.0, 1.0]
    assert step_weights(numbers, range(2, 4), first=1, predicted=FLAT, measured=Measured.nothing(0)) == pytest.approx(
        [4 / 3, 2 / 3]
    )
    assert step_weights([1.0, 0.0, 0.0], range(1, 3), first=0, predicted=FLAT, measured=Measured.nothing(0)) == [1.0, 1.0]


def test_maps_over_the_trajectory_and_weights_of_steps_together_keep_a_total_of_one() -> None:
    m = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    m = m / m.mean((1, 2, 3), keepdim=True)
    share = shared_out([2.0, 0.7, 0.3], m)
    torch.testing.assert_close((share[:, :, None, None] * m).mean((1, 2, 3)), torch.ones(5))
    torch.testing.assert_close(share / share[:, :1], torch.tensor([1.0, 0.35, 0.15]).expand(5, -1))
    assert shared_out([2.0, 0.7, 0.3], None).tolist() == [pytest.approx([2.0, 0.7, 0.3])]
    assert shared_out([1.0, 1.0, 1.0], m).tolist() == [[1.0, 1.0, 1.0]]
