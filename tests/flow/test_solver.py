"""Clean latents against our own ODE, diffusers' pipeline with its multistep solver, and a flow whose solution is known."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import policies
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusion3Pipeline

from star.flow.sampler import denoise
from star.flow.schedule import make_schedule
from star.flow.solver import solve

PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']


class ExactTimes(DPMSolverMultistepScheduler):
    """diffusers' solver, telling the transformer the noise level itself: its own times are cut to whole thousandths."""

    def set_timesteps(self, num_inference_steps: int, device: str | None = None, **more: object) -> None:
        super().set_timesteps(num_inference_steps, device, **more)
        self.timesteps = 1000 * self.sigmas[:-1]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_euler_is_denoising_without_noise(random_base: Path, guidance: float) -> None:
    model = policies.model(random_base, guidance=guidance)
    start = torch.randn(2, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    text, sigmas = model.encode(PROMPTS), model.sigmas(5)
    ours = solve(model, start, text=text, sigmas=sigmas, solver="euler")
    schedule = make_schedule(sigmas, noise_level=0.0)
    theirs = denoise(model, start[:, None], text=text, schedule=schedule).latents_BSCHW[:, -1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert ours.dtype == torch.float32 and not ours.requires_grad


@pytest.mark.parametrize(("guidance", "shift", "steps"), [(1.0, 3.0, 6), (2.5, 1.0, 6), (1.0, 3.0, 16)])
def test_multistep_is_diffusers_pipeline_with_its_solver(random_base: Path, guidance: float, shift: float, steps: int) -> None:
    model = policies.model(random_base, guidance=guidance)
    start = torch.randn(2, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    pipe.scheduler = ExactTimes(use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, flow_shift=shift)
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 64, "width": 64, "num_inference_steps": steps, "max_sequence_length": 16}
    theirs = pipe(PROMPTS, guidance_scale=guidance, latents=start.clone(), output_type="latent", **settings).images
    sigmas = pipe.scheduler.sigmas
    ours, euler = (solve(model, start, text=model.encode(PROMPTS), sigmas=sigmas, solver=s) for s in ("multistep", "euler"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - euler).abs().max() > 100 * (ours - theirs).abs().max()


def _gaussian(scale: float) -> Callable:
    """The velocity of the flow from noise to N(0, scale^2): E[noise - x0 | x]."""

    def velocity(x: torch.Tensor, sigma: float, text: None) -> torch.Tensor:
        variance = (1 - sigma) ** 2 * scale**2 + sigma**2
        return x * (sigma - (1 - sigma) * scale**2) / variance

    return velocity


def test_multistep_from_pure_noise_gains_more_from_steps_than_euler() -> None:
    """The flow to a Gaussian carries x to scale * x. Halved steps: Euler's error halves, the other's is less than a third."""
    model = SimpleNamespace(velocity=_gaussian(2.0), device=torch.device("cpu"), compiled=False)
    start = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = {}
    for solver in ("euler", "multistep"):
        for steps in (20, 40, 80):
            found = solve(model, start, text=None, sigmas=torch.linspace(1, 0, steps + 1), solver=solver)
            errors[solver, steps] = (found / start - 2).abs().max().item()
    for steps in (20, 40):
        assert errors["euler", steps] / errors["euler", 2 * steps] == pytest.approx(2, abs=0.1)
        assert errors["multistep", steps] / errors["multistep", 2 * steps] > 3
        assert errors["multistep", steps] < errors["euler", steps] / 5
