"""Maps of a group's contrast, against slow loops over rollouts and places, and what a rollout's own reward does to its map."""

import numpy as np
import pytest
import torch

from star.allocation.contrast import Groups, by_token, covariance, deviation
from star.allocation.maps import allocation_map
from star.allocation.sources import Observation
from star.config import Allocation

GROUP_B = np.array([0, 1, 0, 1, 1, 0, 2, 0, 2, 1, 2])
REWARD_B = np.array([0.1, 0.9, 0.4, 0.3, 0.2, 0.8, 0.5, 0.6, 0.5, 0.7, 0.5])  # the last group's are equal
X_BCHW = torch.randn(11, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def alone(sum_GCHW: torch.Tensor) -> torch.Tensor:
    return sum_GCHW


def slow(of: str, leave_one_out: bool = False) -> np.ndarray:
    """The maps on the latent grid, rollout by rollout, place by place."""
    x = X_BCHW.double().numpy()
    maps = np.zeros((11, 4, 6))
    for b, y, z in np.ndindex(maps.shape):
        others = [o for o in range(11) if GROUP_B[o] == GROUP_B[b] and not (leave_one_out and o == b)]
        for c in range(3):
            mean = np.mean([x[o, c, y, z] for o in others])
            if of == "deviation":
                maps[b, y, z] += (x[b, c, y, z] - mean) ** 2
            else:
                reward = np.mean(REWARD_B[others])
                maps[b, y, z] += np.mean([(REWARD_B[o] - reward) * (x[o, c, y, z] - mean) for o in others]) ** 2
    return maps


def test_maps_of_contrast_are_those_of_slow_loops() -> None:
    groups = Groups(REWARD_B, GROUP_B, np.arange(11))
    np.testing.assert_allclose(deviation(X_BCHW, groups, alone), slow("deviation"), rtol=1e-10)
    for leave_one_out in (False, True):
        ours = covariance(X_BCHW, groups, alone, leave_one_out=leave_one_out)
        np.testing.assert_allclose(ours, slow("covariance", leave_one_out), rtol=1e-9, atol=1e-15)
        assert (ours[GROUP_B == 2] == 0).all() and (ours[GROUP_B != 2] > 0).any()
    np.testing.assert_allclose(by_token(ours, 2), ours.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)).float(), rtol=1e-6)


def test_the_only_rollout_of_another_reward_gets_no_map_of_rounding() -> None:
    reward_B = np.array([0.1, 0.1, 0.7, 0.1])
    groups = Groups(reward_B, np.zeros(4, int), np.arange(4))
    maps = covariance(X_BCHW[:4], groups, alone, leave_one_out=True)
    assert (maps[2] == 0).all() and (maps[[0, 1, 3]] > 0).all()


@pytest.mark.parametrize("of", ["deviation", "covariance"])
def test_groups_over_several_processes_give_the_maps_of_one(of: str) -> None:
    def made(row_R: np.ndarray, total: object) -> torch.Tensor:
        groups = Groups(REWARD_B, GROUP_B, row_R)
        if of == "deviation":
            return deviation(X_BCHW[row_R], groups, total)
        return covariance(X_BCHW[row_R], groups, total, leave_one_out=True)

    whole = made(np.arange(11), alone)
    # Two processes by turns: the first call of each records its sums, until every sum of both is known.
    shares, sums = [np.arange(11)[rank::2] for rank in range(2)], ([], [])
    for call in range(3):
        known = list(zip(*sums, strict=True))
        for rank, row_R in enumerate(shares):
            told = iter(known)

            def total(sum_GCHW: torch.Tensor, rank: int = rank, told: object = told, call: int = call) -> torch.Tensor:
                if (both := next(told, None)) is not None:
                    return both[0] + both[1]
                if len(sums[rank]) == call:
                    sums[rank].append(sum_GCHW.clone())
                return sum_GCHW

            part = made(row_R, total)
            if call == 2:
                torch.testing.assert_close(part, whole[row_R], rtol=1e-12, atol=1e-16)


def test_sources_of_contrast_and_their_twins() -> None:
    generator = torch.Generator().manual_seed(1)
    raw, found = torch.rand(3, 2, 1, 6, 6, generator=generator), torch.rand(3, 2, 6, 6, generator=generator)
    seen = Observation(3, 2, (6, 6), patch=2, raw_BTOhw=raw, contrast_BThw=found)
    bare = Observation(3, 2, (6, 6), patch=2, contrast_BThw=found)
    noise = torch.randn(3, 2, 6, 6, generator=generator)
    plain = {"smoothing": 0.0, "floor": 0.0}
    for source, expected in {
        "deviation": found,
        "covariance": found,
        "attention_deviation": found * raw[:, :, 0],
        "attention_covariance": found * raw[:, :, 0],
    }.items():
        observed = seen if source.startswith("attention") else bare
        made = allocation_map(Allocation(source=source, **plain), observed, range(2))[..., ::2, ::2]
        torch.testing.assert_close(made, expected / expected.mean((-1, -2), keepdim=True))
        for control in ("random", "shuffled", "inverse"):
            twin = allocation_map(Allocation(source=source, control=control, **plain), observed, range(2), noise)[..., ::2, ::2]
            torch.testing.assert_close(twin.mean((-1, -2)), torch.ones(3, 2))
            if control == "inverse":
                assert torch.equal(twin.flatten(-2).argmin(-1), made.flatten(-2).argmax(-1))
            else:
                assert torch.equal(twin.flatten(-2).sort().values, made.flatten(-2).sort().values)


def test_what_a_rollout_s_own_reward_does_to_its_map() -> None:
    """The bias that docs/method.md states: x ~ N(mean, 1) at 16 places, the reward is x at the first of them.

    The true gradient for the means is 1 at that place, 0 elsewhere. An unbiased map weighs it by its own mean.
    """
    rng, n, groups = np.random.default_rng(0), 12, 10_000
    x = rng.standard_normal((groups, n, 16))
    reward = x[..., 0] + rng.standard_normal((groups, n))  # as much again from elsewhere
    advantage = reward - reward.mean(1, keepdims=True)
    weight = {}
    for leave_one_out in (False, True):
        made = Groups(reward.ravel(), np.repeat(np.arange(groups), n), np.arange(groups * n))
        maps = covariance(torch.from_numpy(x.reshape(-1, 1, 1, 16)), made, alone, leave_one_out=leave_one_out)
        M = maps.view(groups, n, 16).numpy()
        M = M / M.mean(-1, keepdims=True)
        gradient = (M * advantage[..., None] * x).mean((0, 1)) * n / (n - 1)
        assert np.abs(gradient[1:]).max() < 0.05  # places without credit get none, either way
        weight[leave_one_out] = gradient[0] / M[..., 0].mean()
    assert weight[True] == pytest.approx(1.0, abs=0.03)
    assert weight[False] == pytest.approx(1.23, abs=0.03)
