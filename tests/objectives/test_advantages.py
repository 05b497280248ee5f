"""Group-relative advantages against a hand-written loop."""

import numpy as np
import pytest

from star.objectives.advantages import combined_advantages, correlations, group_advantages


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


GROUPS = np.repeat(np.arange(4), 6)
WEIGHTS = {"loud": 1.0, "quiet": 1.0}


def _two_rewards() -> dict[str, np.ndarray]:
    """One of a spread a hundred times the other's, and nothing in common."""
    rng = np.random.default_rng(0)
    return {"loud": 10 * rng.standard_normal(24), "quiet": 5 + 0.1 * rng.standard_normal(24)}


def _rule(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return group_advantages(rewards, groups, 5.0)


def _combined(rewards: dict[str, np.ndarray], combination: str, weights: dict[str, float] = WEIGHTS) -> np.ndarray:
    return combined_advantages(rewards, GROUPS, weights=weights, combination=combination, rule=_rule)


def test_several_rewards_against_an_explicit_loop() -> None:
    rewards, weights = _two_rewards(), {"loud": 2.0, "quiet": 0.5}
    summed = [2.0 * a + 0.5 * b for a, b in zip(rewards["loud"], rewards["quiet"], strict=True)]
    deviation = {name: (sum((x - sum(r) / 24) ** 2 for x in r) / 24) ** 0.5 + 1e-4 for name, r in rewards.items()}
    even = [
        2.0 * a / deviation["loud"] + 0.5 * b / deviation["quiet"]
        for a, b in zip(rewards["loud"], rewards["quiet"], strict=True)
    ]

    def advantages(of: list[float]) -> list[float]:
        out = []
        for i, reward in enumerate(of):
            group = of[i // 6 * 6 : i // 6 * 6 + 6]
            out.append((reward - sum(group) / 6) / (np.std(of) + 1e-4))
        return out

    each = zip(advantages(list(rewards["loud"])), advantages(list(rewards["quiet"])), strict=True)
    expected = {
        "sum": advantages(summed),
        "standardised": advantages(even),
        "advantages": [(2.0 * a + 0.5 * b) / 2.5 for a, b in each],
    }
    for combination, values in expected.items():
        np.testing.assert_allclose(_combined(rewards, combination, weights), values, atol=1e-12)


def test_a_reward_of_large_spread_no_longer_drowns_the_other() -> None:
    rewards = _two_rewards()
    followed = {how: correlations(_combined(rewards, how), rewards, GROUPS) for how in ("sum", "standardised", "advantages")}
    assert followed["sum"]["loud"] > 0.99 and abs(followed["sum"]["quiet"]) < 0.3
    for how in ("standardised", "advantages"):
        assert min(followed[how].values()) > 0.5 and abs(followed[how]["loud"] - followed[how]["quiet"]) < 0.15
    louder = rewards | {"loud": 1000 * rewards["loud"]}
    np.testing.assert_allclose(_combined(louder, "standardised"), _combined(rewards, "standardised"), atol=1e-3)


@pytest.mark.parametrize("how", ["standardised", "advantages"])
def test_a_reward_that_tells_nothing_apart_changes_nothing(how: str) -> None:
    rewards = {"loud": _two_rewards()["loud"], "quiet": np.full(24, 0.3)}
    alone = _combined({"loud": rewards["loud"]}, how, {"loud": 1.0})
    np.testing.assert_allclose(_combined(rewards, how), alone / (2 if how == "advantages" else 1), atol=1e-12)
    assert correlations(alone, rewards, GROUPS)["quiet"] is None
