"""The policy losses of trajectory objectives against slow implementations from their equations, in float64."""

import math

import pytest
import torch

from star import config as configuration
from star.flow.schedule import log_prob, make_schedule, step_mean
from star.objectives.flow_grpo import FlowGrpo
from star.objectives.guard import Guard
from star.objectives.points import Terms, Transition, Velocities

M, C, H, W, STEP = 3, 2, 4, 4, 2
SIGMAS = torch.linspace(1, 0, 9)
SCHEDULE = make_schedule(SIGMAS, noise_level=0.7)
ADVANTAGE = torch.tensor([1.5, -0.7, 0.3], dtype=torch.float64)
CASES = [(name, form) for name in ("flow_grpo", "guard") for form in ("weighted", "per_location")]
CLIP = {"flow_grpo": 1e-3, "guard": 4e-4}  # binds for some samples and places, and not for others


def _objective(name: str, form: str) -> FlowGrpo:
    settings = {"name": name, "form": form, "clip_range": CLIP[name], "location_clip_range": 5 * CLIP[name], "kl_weight": 0.0}
    return FlowGrpo(configuration.FlowGrpo(**settings)) if name == "flow_grpo" else Guard(configuration.Guard(**settings))


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _map() -> torch.Tensor:
    drawn = _drawn(5, M, H, W).abs()
    return drawn / drawn.mean((1, 2), keepdim=True)


@pytest.fixture
def point() -> Transition:
    x, v_old, noise = (_drawn(seed, M, C, H, W) for seed in (0, 1, 2))
    mean = step_mean(SCHEDULE, STEP, x, v_old)
    x_next = mean + SCHEDULE.std[STEP].item() * noise
    return Transition(0, STEP, SCHEDULE, x, x_next, log_prob(SCHEDULE, STEP, x_next, mean), mean)


@pytest.fixture
def velocity() -> torch.Tensor:
    return _drawn(1, M, C, H, W) + 0.05 * _drawn(3, M, C, H, W)


def _terms(name: str, form: str, point: Transition, v: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
    return _objective(name, form).terms(point, velocities=Velocities(v), advantage_M=ADVANTAGE, map_MHW=map_MHW)


def _slow(name: str, form: str, point: Transition, v: torch.Tensor, map_MHW: torch.Tensor) -> list[float]:
    """Place by place: Gaussian densities for Flow-GRPO, noise times the change of the mean for Guard."""
    std, clip = SCHEDULE.std[STEP].item(), CLIP[name] * (5 if form == "per_location" else 1)
    a, b = SCHEDULE.coef_x[STEP].item(), SCHEDULE.coef_v[STEP].item()
    losses = []
    for m in range(M):
        logs, weights = [], []
        for y in range(H):
            for x in range(W):
                here = 0.0
                for c in range(C):
                    drawn, old = point.x_next[m, c, y, x].item(), point.old_mean[m, c, y, x].item()
                    new = a * point.x[m, c, y, x].item() + b * v[m, c, y, x].item()
                    if name == "guard":
                        here += (drawn - old) / std * (new - old) / C
                    else:
                        here += ((drawn - old) ** 2 - (drawn - new) ** 2) / (2 * std**2) / C
                logs.append(here)
                weights.append(map_MHW[m, y, x].item())

        def clipped(log_ratio: float, advantage: float = ADVANTAGE[m].item()) -> float:
            ratio = math.exp(log_ratio)
            return max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip))

        if form == "weighted":
            loss = clipped(sum(w * log for w, log in zip(weights, logs, strict=True)) / (H * W))
        else:
            loss = sum(w * clipped(log) for w, log in zip(weights, logs, strict=True)) / (H * W)
        duration = (SIGMAS[STEP] - SIGMAS[STEP + 1]).item()
        losses.append(loss / duration if name == "guard" else loss)
    return losses


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_loss_is_its_equation(name: str, form: str, point: Transition, velocity: torch.Tensor) -> None:
    terms = _terms(name, form, point, velocity, _map())
    weight, loss_M = terms.parts["policy_loss"]
    assert weight == 1.0 and 0 < terms.means["clip_fraction"].mean() < 1
    assert loss_M.tolist() == pytest.approx(_slow(name, form, point, velocity, _map()), 1e-6)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_gradients_are_those_of_finite_differences(name: str, form: str, point: Transition, velocity: torch.Tensor) -> None:
    leaf = velocity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_terms(name, form, point, leaf, _map()).parts["policy_loss"][1].sum(), leaf)
    assert gradient.count_nonzero() > 0
    step, coordinates = 1e-6, [(m, c, y, x) for m in range(M) for c in range(C) for y, x in ((0, 0), (2, 3))]
    for where in coordinates:
        values = []
        for sign in (1, -1):
            moved = velocity.clone()
            moved[where] += sign * step
            values.append(sum(_slow(name, form, point, moved, _map())))
        assert gradient[where].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["flow_grpo", "guard"])
def test_a_map_of_ones_is_the_scalar_objective_bit_for_bit(name: str, point: Transition, velocity: torch.Tensor) -> None:
    found = []
    for map_MHW in (None, torch.ones(M, H, W, dtype=torch.float64)):
        leaf = velocity.clone().requires_grad_()
        total = _terms(name, "weighted", point, leaf, map_MHW).parts["policy_loss"][1].sum()
        found.append((total, torch.autograd.grad(total, leaf)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
