"""GRPO-Guard's ratio and loss against their equations."""

import pytest
import torch

from star import config as configuration
from star.flow.schedule import log_prob, make_schedule, step_mean
from star.objectives.guard import Guard, log_ratio
from star.objectives.points import Transition, Velocities

M, C, H, W = 4, 3, 4, 4
SCHEDULE = make_schedule(torch.linspace(1, 0, 9), noise_level=0.7)


def _guard(form: str = "weighted") -> Guard:
    return Guard(configuration.Guard(name="guard", form=form, clip_range=1e9, location_clip_range=1e9))


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _transition(step: int, x: torch.Tensor, v_old: torch.Tensor, noise: torch.Tensor) -> Transition:
    mean = step_mean(SCHEDULE, step, x, v_old)
    x_next = mean + SCHEDULE.std[step].item() * noise
    return Transition(0, step, SCHEDULE, x, x_next, log_prob(SCHEDULE, step, x_next, mean), mean)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_the_log_ratio_is_the_normalised_one_of_the_publication(step: int) -> None:
    x, v_old, v_new, noise = (_drawn(seed, M, C, H, W) for seed in (0, 1, 2, 3))
    point = _transition(step, x, v_old, noise)
    mean = step_mean(SCHEDULE, step, x, v_new)
    s = SCHEDULE.std[step].item()
    d = mean - point.old_mean
    plain = log_prob(SCHEDULE, step, point.x_next, mean) - point.old_log_prob
    torch.testing.assert_close(log_ratio(point, mean), s * (plain + (d**2).mean(1) / (2 * s**2)))
    torch.testing.assert_close(log_ratio(point, mean), (noise * d).mean(1))
    assert torch.equal(log_ratio(point, point.old_mean), torch.zeros(M, H, W, dtype=torch.float64))


def test_its_mean_is_zero_for_any_map_recorded_before_the_noise_and_plain_ratios_lie_below() -> None:
    many = 4000
    x, v_old, v_new = (_drawn(seed, 1, C, H, W).expand(many, -1, -1, -1) for seed in (0, 1, 2))
    map_HW = torch.linspace(0, 2, H * W, dtype=torch.float64).view(H, W) ** 2
    map_HW = map_HW / map_HW.mean()
    point = _transition(2, x, v_old, _drawn(3, many, C, H, W))
    mean = step_mean(SCHEDULE, 2, x, v_new)
    weighed = (map_HW * log_ratio(point, mean)).mean((1, 2))
    error = weighed.std().item() / many**0.5
    assert abs(weighed.mean().item()) < 4 * error
    plain = (map_HW * (log_prob(SCHEDULE, 2, point.x_next, mean) - point.old_log_prob)).mean((1, 2))
    assert plain.mean() < -5 * plain.std() / many**0.5  # what the bias mends


@pytest.mark.parametrize("form", ["weighted", "per_location"])
def test_the_gradient_at_the_old_policy_is_reweighted_by_the_step_and_ones_are_the_scalar(form: str) -> None:
    x, v_old, noise = (_drawn(seed, M, C, H, W) for seed in (0, 1, 3))
    advantage_M = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    map_MHW = _drawn(4, M, H, W).abs()
    map_MHW = map_MHW / map_MHW.mean((1, 2), keepdim=True)
    sigmas = torch.linspace(1, 0, 9)
    for step in (1, 5):
        point = _transition(step, x, v_old, noise)
        new = v_old.clone().requires_grad_()
        objective = _guard(form)
        terms = objective.terms(point, velocities=Velocities(new), advantage_M=advantage_M, map_MHW=map_MHW)
        assert torch.equal(terms.ratio, torch.ones_like(terms.ratio))
        (gradient,) = torch.autograd.grad(terms.parts["policy_loss"][1].sum(), new)
        duration = (sigmas[step] - sigmas[step + 1]).item()
        slope = SCHEDULE.coef_v[step].item() / duration / (C * H * W)
        expected = -advantage_M[:, None, None, None] * map_MHW[:, None] * noise * slope
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-9)
    scalar, ones = (
        _guard().terms(point, velocities=Velocities(_drawn(9, M, C, H, W)), advantage_M=advantage_M, map_MHW=map_MHW)
        for map_MHW in (None, torch.ones(M, H, W, dtype=torch.float64))
    )
    assert torch.equal(scalar.parts["policy_loss"][1], ones.parts["policy_loss"][1])
