"""Allocation maps and the spatially weighted objective: exact as docs/method.md says."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from star.allocation.maps import allocation_map, drift, effective_area, entropy, localisation, moved, over_steps, token_map
from star.allocation.sources import Observation
from star.allocation.spread import spread, token_shares
from star.config import Allocation
from star.objectives.trajectory import clipped_loss, clipped_loss_by_location

SETTINGS = {"smoothing": 1.0, "sharpness": 2.0, "floor": 0.2}
RAWS = arrays("float32", (2, 3, 8, 8), elements=st.floats(0, 1, width=32))
NORMALISATIONS = st.sampled_from(["per_step", "per_trajectory"])


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@settings(deadline=None)
@given(RAWS, NORMALISATIONS, st.sampled_from([1, 2, 4, "all"]), st.sampled_from([0.0, 1.0]))
def test_maps_are_finite_non_negative_with_mean_one(
    raw: object, normalisation: str, granularity: int | str, smoothing: float
) -> None:
    m = token_map(
        torch.from_numpy(raw),
        smoothing=smoothing,
        sharpness=2.0,
        floor=0.2,
        granularity=granularity,
        normalisation=normalisation,
    )
    assert m.shape == (2, 3, 8, 8)
    assert m.isfinite().all() and (m >= 0).all()
    over = (-1, -2) if normalisation == "per_step" else (-1, -2, -3)
    torch.testing.assert_close(m.mean(over), torch.ones_like(m.mean(over)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["per_step", "per_trajectory"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 1.0])
def test_a_constant_raw_map_gives_exactly_ones(value: float, normalisation: str) -> None:
    m = token_map(torch.full((1, 2, 8, 8), value), **SETTINGS, normalisation=normalisation)
    assert torch.equal(m, torch.ones(1, 2, 8, 8))


def test_values_that_are_not_finite_and_a_grid_that_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        token_map(torch.full((1, 1, 8, 8), float("nan")), **SETTINGS)
    with pytest.raises(ValueError, match=r"granularity: 3 does not divide"):
        token_map(torch.rand(1, 1, 8, 8), **SETTINGS, granularity=3)


def test_smoothing_is_scipys_gaussian() -> None:
    torch.manual_seed(0)
    raw = torch.rand(1, 1, 12, 12)
    m = token_map(raw, smoothing=1.0, sharpness=1.0, floor=0.0)[0, 0]
    expected = gaussian_filter(raw[0, 0].double().numpy(), 1.0, mode="mirror", truncate=3.0)
    torch.testing.assert_close(m.double(), torch.from_numpy(expected / expected.mean()), rtol=1e-5, atol=1e-6)


def test_normalisation_granularity_floor_and_sharpness_by_hand() -> None:
    raw = (
        torch.tensor([[[1.0, 1.0], [1.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]])[None]
        .repeat_interleave(2, -1)
        .repeat_interleave(2, -2)
    )
    plain = {"smoothing": 0.0, "sharpness": 1.0, "floor": 0.0}
    step = token_map(raw, **plain)
    torch.testing.assert_close(step[0, 0, ::2, ::2], torch.tensor([[0.5, 0.5], [0.5, 2.5]]))
    assert torch.equal(step[0, 1], torch.ones(4, 4))  # a step without attention to the core is uniform
    whole = token_map(raw, **plain, normalisation="per_trajectory")
    torch.testing.assert_close(whole[0, :, ::2, ::2], torch.tensor([[[1.0, 1.0], [1.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    coarse = token_map(raw, **plain, granularity="all", normalisation="per_trajectory")
    torch.testing.assert_close(coarse[0, :, 0, 0], torch.tensor([2.0, 0.0]))  # time alone
    assert torch.equal(token_map(raw, **plain, granularity="all"), torch.ones(1, 2, 4, 4))
    sharp = token_map(raw, smoothing=0.0, sharpness=2.0, floor=0.5)
    torch.testing.assert_close(sharp[0, 0, ::2, ::2], 0.5 + 0.5 * torch.tensor([[1.0, 1.0], [1.0, 25.0]]) / 7)


@settings(deadline=None)
@given(RAWS)
def test_pooling_is_that_of_numpy(raw: object) -> None:
    m = token_map(torch.from_numpy(raw), smoothing=0.0, sharpness=1.0, floor=0.0, granularity=4)
    blocks = raw.astype("float64").reshape(2, 3, 2, 4, 2, 4).mean((3, 5))
    for b, t in itertools.product(range(2), range(3)):
        if blocks[b, t].max() > 1e-30:  # below, divisions lose digits
            expected = blocks[b, t] / blocks[b, t].mean()
            np.testing.assert_allclose(m[b, t, ::4, ::4].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_steps_share_maps_as_asked() -> None:
    raw = torch.arange(6.0)[None, :, None, None].expand(2, 6, 4, 4)
    for which, expected in {
        "each": [0, 1, 2, 3, 4, 5],
        "first": [0, 0, 0, 0, 0, 0],
        "last": [5, 5, 5, 5, 5, 5],
        1: [2.5] * 6,
        2: [1, 1, 1, 4, 4, 4],
        4: [0.5, 0.5, 2, 3.5, 3.5, 5],
        6: [0, 1, 2, 3, 4, 5],
        9: [0, 1, 2, 3, 4, 5],
    }.items():
        assert over_steps(raw, which)[0, :, 0, 0].tolist() == expected, which


@pytest.mark.parametrize("smooth", [True, False])
def test_moved_maps_keep_their_weights_at_other_places(smooth: bool) -> None:
    m = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    elsewhere = moved(m, torch.randn(m.shape, generator=_seeded()), smooth)
    assert torch.equal(elsewhere.flatten(-2).sort(-1).values, m.flatten(-2).sort(-1).values)
    correlation = torch.corrcoef(torch.stack([m.flatten(), elsewhere.flatten()]))[0, 1]
    assert abs(correlation) < 0.2  # 512 pairs: three standard errors are 0.13
    roughness = (elsewhere[..., 1:] - elsewhere[..., :-1]).abs().mean()
    assert roughness < 0.25 if smooth else roughness > 0.28  # independent uniform values differ by 1/3 on average
    assert not torch.equal(elsewhere[:, 0], elsewhere[:, 1])


def test_sources_of_maps() -> None:
    raw = torch.rand(3, 5, 2, 8, 8, generator=_seeded())
    region = torch.zeros(3, 8, 8)
    region[:, 2:5, 3:6] = 1
    seen = Observation(3, 5, (8, 8), patch=2, raw_BTOhw=raw, region_Bhw=region)
    plain = {"smoothing": 0.0, "floor": 0.0, "blocks": [0, 1]}

    def of(**changes: object) -> torch.Tensor:
        noise = torch.randn(3, 2, 8, 8, generator=_seeded())
        allocation = Allocation(**{"source": "attention", **plain, **changes})
        return allocation_map(allocation, seen, range(1, 3), noise)

    mean = raw.mean(2)[:, 1:3]
    torch.testing.assert_close(of()[..., ::2, ::2], mean / mean.mean((-1, -2), keepdim=True))
    assert of().shape == (3, 2, 16, 16) and torch.equal(of()[..., ::2, ::2], of()[..., 1::2, 1::2])
    assert torch.equal(of(source="uniform"), torch.ones(3, 2, 16, 16))
    torch.testing.assert_close(of(source="oracle")[0, 0, ::2, ::2], region[0] * 64 / 9)
    assert torch.equal(of(control="inverse").flatten(-2).argmin(-1), of().flatten(-2).argmax(-1))
    assert torch.equal(of(steps=1)[:, 0], of(steps=1)[:, 1])  # the mean over all five steps, not over the trained two
    torch.testing.assert_close(of(steps=1)[:, 0, ::2, ::2], (raw.mean((1, 2)) / raw.mean((1, 2)).mean((-1, -2), keepdim=True)))
    for control in ("random", "shuffled"):
        weights = of(control=control)[..., ::2, ::2].flatten(-2)
        assert torch.equal(weights.sort(-1).values, of()[..., ::2, ::2].flatten(-2).sort(-1).values)
        assert not torch.equal(of(control=control), of())


def test_diagnostics_in_closed_form() -> None:
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2] = 2.0
    assert effective_area(half).tolist() == pytest.approx([0.5])
    assert entropy(half).tolist() == pytest.approx([torch.tensor(8.0).log().item() / torch.tensor(16.0).log().item()])
    assert entropy(torch.ones(2, 1, 4, 4)).tolist() == pytest.approx([1.0, 1.0])
    assert drift(half).isnan().all()
    assert drift(torch.cat([half, half, 2 - half], 1)).tolist() == pytest.approx([0.5])  # no change, then all of it
    region = torch.zeros(2, 4, 4)
    region[0, :, 0] = 1.0  # half of the map's columns; the second picture is empty
    gains = localisation(torch.cat([half, torch.ones_like(half)], 1).expand(2, 2, 4, 4), region)
    assert gains[0].tolist() == pytest.approx([2.0, 1.0]) and gains[1].isnan().all()


def test_a_token_s_share_is_the_mean_of_the_mask_over_its_pixels() -> None:
    masks = [np.random.default_rng(i).random((8, 12)) < 0.4 for i in range(2)]
    expected = np.stack([mask.reshape(4, 2, 3, 4).mean((1, 3)) for mask in masks])
    np.testing.assert_allclose(token_shares(masks, (4, 3)).numpy(), expected, rtol=1e-6)


def test_map_of_ones_is_the_scalar_path_bit_for_bit() -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 16, 16)
    gradients = []
    for m in (None, torch.ones(6, 16, 16)):
        x = base.clone().requires_grad_()
        loss, ratio = clipped_loss(
            torch.randn(6, generator=torch.Generator().manual_seed(1)), spread(x, m), spread(base, m), 1e-4
        )
        loss.mean().backward()
        assert torch.equal(ratio, torch.ones(6))
        gradients.append((loss.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_zero_weight_means_zero_gradient_and_ratio_times_map_has_no_spatial_effect() -> None:
    torch.manual_seed(0)
    new = torch.randn(2, 4, 4, requires_grad=True)
    m = torch.zeros(2, 4, 4)
    m[:, :2] = 2.0
    loss, _ = clipped_loss(torch.tensor([1.0, -2.0]), spread(new, m), spread(new.detach(), m), 0.2)
    loss.mean().backward()
    assert (new.grad[:, 2:] == 0).all() and (new.grad[:, :2] != 0).all()

    # the mistake: a scalar ratio times a map of mean one is the scalar loss
    x = new.detach().clone().requires_grad_()
    ratio = torch.exp(x.mean((1, 2)) - x.detach().mean((1, 2)))
    (ratio[:, None, None] * m).mean().backward()
    assert torch.allclose(x.grad, x.grad[0, 0, 0].expand_as(x.grad))


def test_both_objectives_have_the_same_gradient_at_ratio_one() -> None:
    torch.manual_seed(0)
    old, advantage = torch.randn(5, 6, 6), torch.randn(5)
    m = torch.rand(5, 6, 6) + 0.1
    m = m / m.mean((1, 2), keepdim=True)
    gradients = []
    for by_location in (False, True):
        new = old.clone().requires_grad_()
        if by_location:
            loss, ratio = clipped_loss_by_location(advantage, new, old, m, 0.2)
        else:
            loss, ratio = clipped_loss(advantage, spread(new, m), spread(old, m), 0.2)
        assert (ratio == 1).all()
        loss.sum().backward()
        gradients.append(new.grad)
    torch.testing.assert_close(*gradients)
    assert (gradients[0] != 0).all()


def test_each_location_is_clipped_for_itself() -> None:
    old = torch.zeros(1, 1, 3)
    new = torch.log(torch.tensor([[[1.5, 1.05, 0.5]]])).requires_grad_()
    m = torch.tensor([[[1.0, 2.0, 0.0]]])
    loss, _ = clipped_loss_by_location(torch.tensor([2.0]), new, old, m, 0.1)
    assert loss.item() == pytest.approx(-2 * (1.0 * 1.1 + 2.0 * 1.05 + 0.0 * 0.5) / 3)
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([[[0.0, -2 * 2.0 * 1.05 / 3, 0.0]]]))  # clipped, open, weightless
