"""Flow-SDE and CPS against the golden table, their definitions, an independent density and the ODE of diffusers."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from star.flow.schedule import log_prob, make_schedule, reference_kl, step_mean

# i: sigma, next sigma, sigma_t, std, coefficient of x, coefficient of v (SD3.5-M scheduler, 10 steps, shift 3, a = 0.7)
GOLDEN = {
    0: (1.00000, 0.96013, 3.50567, 0.70000, 0.75500, -0.03987),
    1: (0.96013, 0.91335, 3.43507, 0.74296, 0.71254, -0.05824),
    2: (0.91335, 0.85769, 2.27263, 0.53615, 0.84263, -0.06929),
    4: (0.79037, 0.70728, 1.35920, 0.39179, 0.90289, -0.10345),
    6: (0.60215, 0.46488, 0.86117, 0.31907, 0.91546, -0.17091),
    8: (0.27805, 0.00893, 0.43441, 0.22536, 0.90867, -0.33505),
    9: (0.00893, 0.00000, 0.06644, 0.00628, 0.99779, -0.01112),
}


def _sigmas(steps: int, shift: float = 3.0) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


@pytest.mark.parametrize("step", GOLDEN)
def test_coefficients_match_the_golden_table(step: int) -> None:
    s = make_schedule(_sigmas(10), noise_level=0.7)
    following = s.sigma[step + 1].item() if step < 9 else 0.0
    row = (s.sigma[step], following, s.spread[step], s.std[step], s.coef_x[step], s.coef_v[step])
    assert [float(x) for x in row] == pytest.approx(GOLDEN[step], abs=6e-6)


def test_log_probability_is_the_gaussian_density() -> None:
    torch.manual_seed(0)
    s = make_schedule(_sigmas(10), noise_level=0.7)
    x, v, following = (torch.randn(3, 4, 5, 6) for _ in range(3))
    for t in range(9):
        mean = step_mean(s, t, x, v)
        expected = torch.distributions.Normal(mean.double(), s.std[t].double()).log_prob(following.double()).mean(1)
        torch.testing.assert_close(log_prob(s, t, following, mean).double(), expected, rtol=1e-5, atol=1e-5)


def test_noise_level_zero_is_the_euler_step_of_diffusers() -> None:
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    s = make_schedule(scheduler.sigmas, noise_level=0.0)
    x = torch.randn(2, 4, 3, 3)
    ours = x
    for t, timestep in enumerate(scheduler.timesteps):
        v = torch.sin(x)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
        ours = step_mean(s, t, ours, torch.sin(ours))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-6)


def test_only_the_window_is_noisy() -> None:
    s = make_schedule(_sigmas(8, shift=1.0), noise_level=0.7, noisy=range(2, 4))
    assert [i for i in range(8) if s.std[i] > 0] == [2, 3]
    full, ode = (make_schedule(_sigmas(8, shift=1.0), noise_level=a) for a in (0.7, 0.0))
    assert torch.equal(s.coef_v[2:4], full.coef_v[2:4])
    assert torch.equal(s.coef_v[4:], ode.coef_v[4:])


@pytest.mark.parametrize("step", range(10))
def test_cps_is_its_definition(step: int) -> None:
    """CPS (docs/method.md): the predicted picture and noise are mixed anew at the next noise level, part of it fresh."""
    s = make_schedule(_sigmas(10), noise_level=0.7, sampler="cps")
    sigma, following = GOLDEN.get(step, (s.sigma[step].item(),))[0], s.sigma[step + 1].item() if step < 9 else 0.0
    std = following * math.sin(0.7 * math.pi / 2)
    x, v = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    picture, predicted_noise = x - sigma * v, x + (1 - sigma) * v
    expected = picture * (1 - following) + predicted_noise * math.sqrt(following**2 - std**2)
    assert s.std[step].item() == pytest.approx(std, abs=6e-6)
    torch.testing.assert_close(step_mean(s, step, x.float(), v.float()).double(), expected, rtol=1e-4, atol=5e-5)
    if step < 9:  # the last step adds no noise
        drawn = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(9))
        density = torch.distributions.Normal(expected, std).log_prob(drawn.double()).mean(1)
        torch.testing.assert_close(log_prob(s, step, drawn, expected.float()).double(), density, rtol=1e-4, atol=1e-4)
        dt = sigma - following
        assert s.spread[step].item() == pytest.approx(std / math.sqrt(dt), rel=1e-3)


def test_cps_keeps_the_marginals_and_flow_sde_its_ode_limit() -> None:
    """With the true velocity of a point picture at 0 (x = sigma * noise, v = noise), CPS lands on the next marginal exactly."""
    s = make_schedule(_sigmas(10), noise_level=0.7, sampler="cps")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 400, 400, generator=generator)
    for t in range(9):
        drawn = step_mean(s, t, s.sigma[t] * noise, noise) + s.std[t] * torch.randn(noise.shape, generator=generator)
        assert drawn.std().item() == pytest.approx(s.sigma[t + 1].item(), rel=0.01)  # 160,000 values: six standard errors
    ode, still = (make_schedule(_sigmas(10), noise_level=0.0, sampler=sampler) for sampler in ("flow_sde", "cps"))
    torch.testing.assert_close(still.coef_v, ode.coef_v)
    torch.testing.assert_close(still.coef_x, ode.coef_x)


def test_kl_has_no_dt_in_the_denominator() -> None:
    """Against the closed form KL(N(a, s) || N(b, s)) with s = spread: the step's own std would bring a dt."""
    s = make_schedule(_sigmas(10), noise_level=0.7)
    a, b = torch.full((1, 4, 2, 2), 0.3), torch.full((1, 4, 2, 2), -0.1)
    for t in (0, 4, 8):
        spread = s.spread[t]
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(0.3, spread), torch.distributions.Normal(-0.1, spread)
        )
        assert reference_kl(s, t, a, b).item() == pytest.approx(expected.item(), rel=1e-5)
