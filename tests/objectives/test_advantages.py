"""Group-relative advantages against a hand-written loop."""

import numpy as np
import pytest

from star.objectives.advantages import group_advantages


def test_against_an_explicit_loop() -> None:
    rng = np.random.default_rng(0)
    rewards, groups = rng.random(24), np.repeat(np.arange(4), 6)
    rewards[6:12] = 0.1
    expected = []
    for r, g in zip(rewards, groups, strict=True):
        group = [x for x, h in zip(rewards, groups, strict=True) if h == g]
        expected.append((r - sum(group) / len(group)) / (np.std(rewards) + 1e-4))
    got = group_advantages(rewards, groups, 5.0)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert (got[6:12] == 0).all()


def test_clipped_and_refuses_nan() -> None:
    rewards = np.r_[np.zeros(99), 100.0]
    assert group_advantages(rewards, np.zeros(100), 5.0).max() == 5.0
    with pytest.raises(ValueError, match="sample 1 "):
        group_advantages(np.array([0.0, np.nan]), np.zeros(2), 5.0)
