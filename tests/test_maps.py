"""Allocation maps and the spatially weighted objective: the exactness that method section 3 asks for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from star.allocation.maps import allocation_map, effective_area, entropy, random_map
from star.allocation.objective import allocate, clipped_loss

SETTINGS = {"smoothing": 1.0, "sharpness": 2.0, "floor": 0.2}


@given(arrays("float32", (2, 3, 8, 8), elements=st.floats(0, 1, width=32)))
def test_maps_are_finite_non_negative_with_mean_one(raw: object) -> None:
    m = allocation_map(torch.from_numpy(raw), **SETTINGS)
    assert m.shape == (2, 3, 16, 16)
    assert m.isfinite().all() and (m >= 0).all()
    torch.testing.assert_close(m.mean((-1, -2)), torch.ones(2, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 1.0])
def test_a_constant_raw_map_gives_exactly_ones(value: float) -> None:
    assert torch.equal(allocation_map(torch.full((1, 2, 8, 8), value), **SETTINGS), torch.ones(1, 2, 16, 16))


def test_smoothing_is_scipys_gaussian() -> None:
    torch.manual_seed(0)
    raw = torch.rand(1, 1, 12, 12)
    m = allocation_map(raw, smoothing=1.0, sharpness=1.0, floor=0.0)[0, 0, ::2, ::2]
    expected = gaussian_filter(raw[0, 0].double().numpy(), 1.0, mode="mirror", truncate=3.0)
    torch.testing.assert_close(m.double(), torch.from_numpy(expected / expected.mean()), rtol=1e-5, atol=1e-6)


def test_random_map_keeps_the_values_and_moves_them() -> None:
    raw = torch.rand(4, 2, 8, 8)
    moved = random_map(raw, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(-2).sort(-1).values, raw.flatten(-2).sort(-1).values)
    correlation = torch.corrcoef(torch.stack([raw.flatten(), moved.flatten()]))[0, 1]
    assert abs(correlation) < 0.2  # 512 independent pairs: three standard errors are 0.13


def test_diagnostics_in_closed_form() -> None:
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2] = 2.0
    assert effective_area(half) == pytest.approx(0.5)
    assert entropy(half) == pytest.approx(torch.tensor(8.0).log().item() / torch.tensor(16.0).log().item())
    assert entropy(torch.ones(1, 1, 4, 4)) == pytest.approx(1.0)


def test_map_of_ones_is_the_scalar_path_bit_for_bit() -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 16, 16)
    gradients = []
    for m in (None, torch.ones(6, 16, 16)):
        x = base.clone().requires_grad_()
        loss, ratio = clipped_loss(
            torch.randn(6, generator=torch.Generator().manual_seed(1)), allocate(x, m), allocate(base, m), 1e-4
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
    loss, _ = clipped_loss(torch.tensor([1.0, -2.0]), allocate(new, m), allocate(new.detach(), m), 0.2)
    loss.mean().backward()
    assert (new.grad[:, 2:] == 0).all() and (new.grad[:, :2] != 0).all()

    # the mistake: a scalar ratio times a map of mean one is the scalar loss
    x = new.detach().clone().requires_grad_()
    ratio = torch.exp(x.mean((1, 2)) - x.detach().mean((1, 2)))
    (ratio[:, None, None] * m).mean().backward()
    assert torch.allclose(x.grad, x.grad[0, 0, 0].expand_as(x.grad))
