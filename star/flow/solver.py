"""Denoising without noise, keeping the clean latents alone: what a forward-process objective rolls out.

Shapes: B batch, C H W latents, T denoising steps.
"""

from typing import TYPE_CHECKING

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

if TYPE_CHECKING:
    from star.models.door import FlowModel, Text


@torch.no_grad()
def solve(model: "FlowModel", start_BCHW: torch.Tensor, *, text: "Text", sigmas: torch.Tensor, solver: str) -> torch.Tensor:
    """Clean latents of a batch, float32 [B, C, H, W], over noise levels `sigmas` [T + 1] from 1 down to 0.

    `euler`, or `multistep`: DPM-Solver++ of second order, whose first and last steps are of first order (arXiv 2211.01095).
    """
    scheduler = _scheduler(solver, sigmas)
    x = start_BCHW.to(model.device)
    for t, timestep in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(model.compiled):  # compiled, it must be the update's program
            v = model.velocity(x, sigmas[t].item(), text).detach()
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x


def _scheduler(solver: str, sigmas: torch.Tensor) -> FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler:
    """diffusers' solver over our noise levels, which are the base's own."""
    steps = len(sigmas) - 1
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    else:
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            solver_order=2,
            lower_order_final=True,
            euler_at_final=True,
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(steps)
        scheduler.timesteps = 1000 * sigmas[:-1]
    scheduler.sigmas = sigmas.clone()
    return scheduler
