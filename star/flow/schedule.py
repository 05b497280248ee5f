"""The denoising step as a policy: mean, standard deviation and log-probability.

Two samplers: Flow-SDE (Flow-GRPO, arXiv 2505.05470) and CPS, which keeps the marginal's coefficients (arXiv 2509.05952).

All step arithmetic is float32. Shapes: B batch, C latent channels, H W latent size, T denoising steps.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """Per-step coefficients, float32 [T]: `mean = x * coef_x + v * coef_v`, `x_next = mean + std * noise`.

    `sigma` is the scheduler's (it equals the flow's time), `spread` is method.md's sigma_t, by which the KL is scaled:
    std = spread * sqrt(-dt).
    A step with `std` 0 is the Euler ODE step.
    """

    sigma: torch.Tensor
    spread: torch.Tensor
    std: torch.Tensor
    coef_x: torch.Tensor
    coef_v: torch.Tensor

    def __len__(self) -> int:
        return len(self.sigma)


def make_schedule(
    sigmas: torch.Tensor, *, noise_level: float, noisy: range | None = None, sampler: str = "flow_sde"
) -> Schedule:
    """The schedule over `sigmas` [T + 1], noise level a on the steps in `noisy` (all by default); a = 0 is the ODE."""
    sigma, following, dt = sigmas[:-1], sigmas[1:], sigmas[1:] - sigmas[:-1]
    steps = len(sigma)
    chosen = torch.zeros(steps, dtype=torch.bool)
    chosen[list(noisy if noisy is not None else range(steps))] = True
    if sampler == "cps":
        std = torch.where(chosen, following * math.sin(noise_level * math.pi / 2), 0.0)
        kept = torch.sqrt(following**2 - std**2)  # of the predicted noise; std replaces the rest by fresh noise
        spread, coef_x = std / torch.sqrt(-dt), 1 - following + kept
        return Schedule(sigma, spread, std, coef_x, coef_v=(1 - sigma) * kept - sigma * (1 - following))
    at_one = torch.where(sigma == 1, sigmas[1], sigma)
    spread = torch.where(chosen, noise_level * torch.sqrt(sigma / (1 - at_one)), 0.0)
    return Schedule(
        sigma=sigma,
        spread=spread,
        std=spread * torch.sqrt(-dt),
        coef_x=1 + spread**2 / (2 * sigma) * dt,
        coef_v=(1 + spread**2 * (1 - sigma) / (2 * sigma)) * dt,
    )


def step_mean(schedule: Schedule, t: int, x_BCHW: torch.Tensor, v_BCHW: torch.Tensor) -> torch.Tensor:
    """The mean of the next latents, float32 [B, C, H, W]."""
    return x_BCHW * schedule.coef_x[t].item() + v_BCHW * schedule.coef_v[t].item()


def log_prob(schedule: Schedule, t: int, next_BCHW: torch.Tensor, mean_BCHW: torch.Tensor) -> torch.Tensor:
    """Log-density of the drawn next latents, averaged over channels: float32 [B, H, W]. Step t must be a noisy one."""
    std = schedule.std[t].item()
    constant = math.log(std) + 0.5 * math.log(2 * math.pi)
    return (-((next_BCHW - mean_BCHW) ** 2) / (2 * std**2) - constant).mean(1)


def reference_kl(schedule: Schedule, t: int, mean_BCHW: torch.Tensor, reference_BCHW: torch.Tensor) -> torch.Tensor:
    """KL to the reference policy, [B]: mean over C, H, W of the squared difference of means over 2 sigma_t^2 (no dt)."""
    return ((mean_BCHW - reference_BCHW) ** 2).mean((1, 2, 3)) / (2 * schedule.spread[t].item() ** 2)
