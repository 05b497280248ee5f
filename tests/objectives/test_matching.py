"""Forward-process objectives against slow implementations written from their equations, in float64."""

import math

import numpy as np
import pytest
import torch

from star import config as configuration
from star.objectives.awm import Awm
from star.objectives.matching import Noised, noised_points, old_policy_decay, strata
from star.objectives.nft import Nft, optimality
from star.objectives.pepg import Pepg
from star.objectives.points import Velocities

M, C, H, W = 3, 2, 4, 4
BRANCH, CLIP, KL = 0.5, 5.0, 0.1


def _nft(**changes: object) -> Nft:
    return Nft(
        configuration.Nft(**{"name": "nft", "branch_strength": BRANCH, "advantage_clip": CLIP, "kl_weight": KL} | changes)
    )


def _pepg(**changes: object) -> Pepg:
    return Pepg(configuration.Pepg(**{"name": "pepg", "kl_weight": KL} | changes))


def _awm(**changes: object) -> Awm:
    return Awm(configuration.Awm(**{"name": "awm", "kl_weight": KL, "old_weight": 0.7} | changes))


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def point() -> Noised:
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    return Noised(0, sigma, _drawn(0, M, C, H, W), _drawn(1, M, C, H, W))


@pytest.fixture
def velocities() -> Velocities:
    new, old, reference = (_drawn(seed, M, C, H, W) for seed in (2, 3, 4))
    return Velocities(new, old=old, reference=reference)


ADVANTAGE = torch.tensor([1.5, -0.7, 6.0])


def _map(seed: int = 5) -> torch.Tensor:
    drawn = _drawn(seed, M, H, W).abs()
    return drawn / drawn.mean((1, 2), keepdim=True)


def _slow_nft(
    point: Noised, v: Velocities, advantage: list[float], M_map: torch.Tensor | None, by_location: bool
) -> list[float]:
    """Element by element, from the equations of the paper and docs/method.md."""
    losses = []
    for m in range(M):
        t = point.sigma[m].float().item()  # noise levels are float32 numbers
        total = 0.0
        for sign in (+1, -1):
            branch = BRANCH * v.new[m] + (1 - BRANCH) * v.old[m]
            if sign < 0:
                branch = (1 + BRANCH) * v.old[m] - BRANCH * v.new[m]
            x_t = (1 - t) * point.x0[m] + t * point.noise[m]
            error = x_t - t * branch - point.x0[m]
            w = max(error.abs().mean().item(), 1e-5)
            for y in range(H):
                for x in range(W):
                    here = 1.0 if M_map is None else M_map[m, y, x].item()
                    tilt = advantage[m] * (here if by_location else 1.0) / CLIP
                    r = 0.5 + 0.5 * max(-1.0, min(1.0, tilt))
                    probability = r if sign > 0 else 1 - r
                    square = sum(error[c, y, x].item() ** 2 for c in range(C)) / C
                    total += (1.0 if by_location else here) * probability * square / w / (H * W)
        losses.append(total * CLIP / BRANCH)
    return losses


@pytest.mark.parametrize("form", ["weighted", "per_location"])
@pytest.mark.parametrize("mapped", [False, True])
def test_nft_is_its_equation(point: Noised, velocities: Velocities, form: str, mapped: bool) -> None:
    objective, map_MHW = _nft(form=form), _map() if mapped else None
    terms = objective.terms(point, velocities=velocities, advantage_M=ADVANTAGE, map_MHW=map_MHW)
    weight, loss_M = terms.parts["policy_loss"]
    assert weight == 1.0
    assert loss_M.tolist() == pytest.approx(
        _slow_nft(point, velocities, ADVANTAGE.tolist(), map_MHW, form == "per_location"), 1e-5
    )
    weight, kl_M = terms.parts["kl"]
    assert weight == KL
    assert kl_M.tolist() == pytest.approx(
        [(velocities.new[m] - velocities.reference[m]).square().mean().item() for m in range(M)]
    )


@pytest.mark.parametrize("form", ["weighted", "per_location"])
def test_the_first_order_gradient_of_nft_is_the_closed_form(point: Noised, velocities: Velocities, form: str) -> None:
    """At the old policy: -(2 t / (N w)) A M(p) e(p), whatever the branch strength; without advantage none at all."""
    map_MHW = _map() * 0.5 + 0.5  # so that no tilt is clipped
    advantage_M = torch.tensor([1.5, -0.7, 0.0])
    for strength in (0.1, 1.0):
        objective = _nft(form=form, branch_strength=strength, kl_weight=0.0)
        new = velocities.old.clone().requires_grad_()
        terms = objective.terms(point, velocities=Velocities(new, old=velocities.old), advantage_M=advantage_M, map_MHW=map_MHW)
        (gradient,) = torch.autograd.grad(terms.parts["policy_loss"][1].double().sum(), new)
        t = point.sigma.float().double()[:, None, None, None]
        error = (1 - t) * point.x0 + t * point.noise - t * velocities.old - point.x0
        w = error.abs().mean((1, 2, 3), keepdim=True)
        expected = -2 * t / (C * H * W * w) * advantage_M.double()[:, None, None, None] * map_MHW[:, None] * error
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)
        assert gradient[2].abs().max() < 1e-12  # r = 1/2 has no gradient at the old policy
    assert optimality(torch.tensor([0.0, 99.0, -99.0]), 5.0).tolist() == [0.5, 1.0, 0.0]


def _numeric(loss: object, at: torch.Tensor, where: tuple) -> float:
    step, values = 1e-5, []
    for sign in (1, -1):
        moved = at.clone()
        moved[where] += sign * step
        values.append(float(loss(moved)))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("name", ["nft", "nft per location", "pepg", "epg", "par", "awm"])
def test_gradients_are_those_of_finite_differences(point: Noised, velocities: Velocities, name: str) -> None:
    """Of the loss with what carries no gradient held where it is."""
    map_MHW, advantage_M = _map(), torch.tensor([1.5, -0.7, 0.3])
    t = point.sigma.float().double()[:, None, None, None]
    a = advantage_M.double()

    def error(v: torch.Tensor) -> torch.Tensor:
        return (1 - t) * point.x0 + t * point.noise - t * v - point.x0

    def size(e: torch.Tensor) -> torch.Tensor:
        return e.abs().mean((1, 2, 3))

    def weighed(e: torch.Tensor) -> torch.Tensor:
        return (map_MHW * (e**2).mean(1)).mean((1, 2))

    new, old = velocities.new, velocities.old
    if name.startswith("nft"):
        objective = _nft(form="per_location" if "location" in name else "weighted", kl_weight=0.0)
        b = BRANCH
        w_plus, w_minus = size(error(b * new + (1 - b) * old)), size(error((1 + b) * old - b * new))

        def loss(v: torch.Tensor) -> torch.Tensor:
            plus, minus = error(b * v + (1 - b) * old), error((1 + b) * old - b * v)
            if "location" in name:
                r = (0.5 + 0.5 * (map_MHW * a[:, None, None] / 5).clamp(-1, 1))[:, None]
                each = (r * plus**2).mean((1, 2, 3)) / w_plus + ((1 - r) * minus**2).mean((1, 2, 3)) / w_minus
            else:
                r = 0.5 + 0.5 * (a / 5).clamp(-1, 1)
                each = r * weighed(plus) / w_plus + (1 - r) * weighed(minus) / w_minus
            return (each * 5 / b).sum()

    elif name == "awm":
        objective = _awm(kl_weight=0.0, old_weight=0.0)
        target = point.noise - point.x0
        plain = ((new - target) ** 2).mean((1, 2, 3))
        slope = point.sigma * (plain + 1e-10) ** (0.25 - 1)

        def loss(v: torch.Tensor) -> torch.Tensor:
            return (a * slope * weighed(v - target)).sum()  # ratio 1: the gradient of -A logp

    else:
        objective = _pepg(form=name, kl_weight=0.0)
        w = size(error(new))
        bound_old = -weighed(error(old)) / size(error(old))
        lam = -weighed(error(new)) / w - bound_old

        def loss(v: torch.Tensor) -> torch.Tensor:
            bound = -weighed(error(v)) / w
            if name == "epg":
                return -(lam.exp() * a * bound).sum()
            if name == "pepg":
                return -(lam.exp() * (a - lam) * bound).sum()
            return (0.5 * lam.exp() * (a - (bound - bound_old)) ** 2).sum()

    leaf = new.clone().requires_grad_()
    terms = objective.terms(point, velocities=Velocities(leaf, old=old), advantage_M=advantage_M, map_MHW=map_MHW)
    total = sum(weight * part.double().sum() for weight, part in terms.parts.values())
    (gradient,) = torch.autograd.grad(total, leaf)
    for where in ((0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 3, 1)):
        assert gradient[where].item() == pytest.approx(_numeric(loss, new, where), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("objective", [_nft(), _pepg(), _awm()])
def test_a_map_of_ones_is_the_scalar_objective_bit_for_bit(point: Noised, velocities: Velocities, objective: object) -> None:
    found = []
    for map_MHW in (None, torch.ones(M, H, W)):
        new = velocities.new.clone().requires_grad_()
        given = Velocities(new, old=velocities.old, reference=velocities.reference)
        terms = objective.terms(point, velocities=given, advantage_M=ADVANTAGE, map_MHW=map_MHW)
        total = sum(weight * part.sum() for weight, part in terms.parts.values())
        found.append((total, torch.autograd.grad(total, new)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def _slow_mean(point: Noised, v: torch.Tensor, m: int, map_HW: torch.Tensor) -> tuple[float, float, float]:
    """Of a sample's error of x0: its mean size; of its squares the weighed mean; of the velocity's the weighed mean."""
    t, size, x0_square, v_square = point.sigma[m].float().item(), 0.0, 0.0, 0.0
    for c in range(C):
        for y in range(H):
            for x in range(W):
                x0, noise, here = (value[m, c, y, x].item() for value in (point.x0, point.noise, v))
                error = (1 - t) * x0 + t * noise - t * here - x0
                size += abs(error) / (C * H * W)
                x0_square += map_HW[y, x].item() * error**2 / (C * H * W)
                v_square += map_HW[y, x].item() * (here - (noise - x0)) ** 2 / (C * H * W)
    return size, x0_square, v_square


@pytest.mark.parametrize("form", ["pepg", "epg", "par"])
def test_pepg_is_its_equation(point: Noised, velocities: Velocities, form: str) -> None:
    map_MHW = _map()
    terms = _pepg(form=form).terms(point, velocities=velocities, advantage_M=ADVANTAGE, map_MHW=map_MHW)
    for m, a in enumerate(ADVANTAGE.tolist()):
        bound, old = (
            -square / size
            for size, square, _ in (_slow_mean(point, v, m, map_MHW[m]) for v in (velocities.new, velocities.old))
        )
        lam = bound - old
        expected = {"epg": -a * bound, "pepg": -(a - lam) * bound, "par": 0.5 * (a - lam) ** 2}[form] * math.exp(lam)
        assert terms.parts["policy_loss"][1][m].item() == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize(("weighting", "slope"), [("uniform", 1.0), ("t", 0.5), ("t2", 0.25), ("ghuber", None)])
def test_awm_is_its_equation(point: Noised, velocities: Velocities, weighting: str, slope: float | None) -> None:
    """Its value is that of -A, its gradient that of A g'(l) mean(M (v - v*)^2); both anchors pull unweighed."""
    map_MHW, leaf = _map(), velocities.new.clone().requires_grad_()
    given = Velocities(leaf, old=velocities.old, reference=velocities.reference)
    terms = _awm(weighting=weighting).terms(point, velocities=given, advantage_M=ADVANTAGE, map_MHW=map_MHW)
    assert terms.parts["policy_loss"][1].tolist() == pytest.approx((-ADVANTAGE).tolist())
    (gradient,) = torch.autograd.grad(terms.parts["policy_loss"][1].double().sum(), leaf)
    m, c, y, x = 1, 1, 2, 3  # t = 0.5
    plain = _slow_mean(point, velocities.new, m, torch.ones(H, W))[2]
    slope = 0.5 * (plain + 1e-10) ** -0.75 if slope is None else slope
    error = velocities.new[m, c, y, x] - (point.noise - point.x0)[m, c, y, x]
    expected = ADVANTAGE[m] * slope * map_MHW[m, y, x] * 2 * error / (C * H * W)
    assert gradient[m, c, y, x].item() == pytest.approx(expected.item(), 1e-5)
    assert terms.parts["old_distance"][0] == 0.7
    assert terms.parts["old_distance"][1].tolist() == pytest.approx(
        [(velocities.new[m] - velocities.old[m]).square().mean().item() for m in range(M)]
    )


def test_the_kl_pulls_back_to_the_base(point: Noised, velocities: Velocities) -> None:
    for objective in (_nft(), _pepg(), _awm()):
        new = velocities.new.clone().requires_grad_()
        given = Velocities(new, old=velocities.old, reference=velocities.reference)
        _, kl_M = objective.terms(point, velocities=given, advantage_M=ADVANTAGE, map_MHW=None).parts["kl"]
        (gradient,) = torch.autograd.grad(kl_M.sum(), new)
        torch.testing.assert_close(gradient, 2 * (velocities.new - velocities.reference) / (C * H * W))


def test_points_are_stratified_named_and_independent_of_the_batch() -> None:
    sigmas = torch.linspace(1, 0.1, 10)
    assert [list(run) for run in strata(10, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert [list(run) for run in strata(4, 4)] == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match="5 times do not fit"):
        strata(4, 5)
    x0 = _drawn(7, 40, C, H, W).float()
    names = [(0, 1, f"prompt {i}", i) for i in range(40)]
    together = list(noised_points(x0, names, sigmas=sigmas, times=3))
    alone = list(noised_points(x0[5:6], names[5:6], sigmas=sigmas, times=3))
    for k, (a, b) in enumerate(zip(together, alone, strict=True)):
        assert torch.equal(a.x[5:6], b.x) and torch.equal(a.noise[5:6], b.noise) and a.sigma[5] == b.sigma[0]
        chosen = {round(s, 4) for s in a.sigma.tolist()}
        assert chosen == {round(sigmas[i].item(), 4) for i in strata(10, 3)[k]}  # 40 samples see all of a stratum
    assert not torch.equal(together[0].noise, together[1].noise)
    assert abs(torch.cat([p.noise for p in together]).std().item() - 1) < 0.03


def test_old_policy_schedules_are_the_published_ones() -> None:
    assert [old_policy_decay("none", e) for e in (1, 1000)] == [0.0, 0.0]
    assert [old_policy_decay("ramp", e) for e in (1, 100, 500, 9000)] == [0.001, 0.1, 0.5, 0.5]
    assert [old_policy_decay("late_ramp", e) for e in (74, 75, 85, 9000)] == pytest.approx([0.0, 0.0, 0.075, 0.999])


def test_advantages_of_each() -> None:
    reward, group = np.array([0.0, 1.0, 1.0, 1.0, 0.5, 0.5]), np.array([0, 0, 1, 1, 2, 2])
    expected = np.array([-0.5, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(_pepg().advantages(reward, group), 0.1 * expected)
    for objective, scale in ((_nft(), 1.0), (_awm(), 1 / 5)):  # AWM's are scaled so that the largest possible one is 1
        np.testing.assert_allclose(objective.advantages(reward, group), scale * expected / (reward.std() + 1e-4))
    assert math.isclose(reward.std(), np.sqrt(np.mean((reward - reward.mean()) ** 2)))
