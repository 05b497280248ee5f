"""The KL of trajectory objectives: its gradient points back to the base, in the velocity and in the adapter's weights."""

import pytest
import torch

from star.config import FlowGrpo as Settings
from star.flow.schedule import make_schedule
from star.objectives.flow_grpo import FlowGrpo
from star.objectives.points import Transition, Velocities

M, C, H, W = 3, 2, 4, 4
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize("sampler", ["flow_sde", "cps"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_kl_pulls_back_to_the_base(sampler: str, step: int) -> None:
    """d KL / d v = coef_v^2 (v - v_base) / (N spread^2), and a step against it comes closer to the base."""
    rng = torch.Generator().manual_seed(step)
    x, x_next, new, base = (torch.randn(M, C, H, W, generator=rng) for _ in range(4))
    schedule = make_schedule(SIGMAS, noise_level=0.7, sampler=sampler)
    point = Transition(0, step, schedule, x, x_next, old_log_prob=torch.zeros(M, H, W))
    objective = FlowGrpo(Settings(kl_weight=0.04))
    assert objective.asks == {"reference"}
    leaf = new.clone().requires_grad_()
    terms = objective.terms(point, velocities=Velocities(leaf, reference=base), advantage_M=torch.ones(M), map_MHW=None)
    weight, kl_M = terms.parts["kl"]
    (gradient,) = torch.autograd.grad(kl_M.sum(), leaf)
    assert weight == 0.04
    scale = (schedule.coef_v[step] / schedule.spread[step]).item() ** 2 / (C * H * W)
    torch.testing.assert_close(gradient, scale * (new - base), rtol=1e-4, atol=1e-6)
    moved = new - 0.5 / scale * gradient
    assert ((moved - base).abs() <= (new - base).abs()).all()
    assert kl_M.min() > 0
