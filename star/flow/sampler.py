"""Denoising a batch step by step, by the ODE or with noise, keeping what a trajectory objective needs.

Shapes: B batch, T denoising steps, S = T + 1 latents, C H W latents, O recorded blocks, h w token grid.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.flow.schedule import Schedule, log_prob, step_mean

if TYPE_CHECKING:
    from star.models.attention import Recorder
    from star.models.door import FlowModel, Text


@dataclass(frozen=True)
class Trajectory:
    """A sampled batch: latents float32 [B, S, C, H, W], log-probabilities [B, T, H, W], raw maps half [B, T, O, h, w].

    `mean_BTCHW` has the means of the steps; None where nobody keeps them.
    """

    latents_BSCHW: torch.Tensor
    log_prob_BTHW: torch.Tensor
    raw_BTOhw: torch.Tensor | None
    mean_BTCHW: torch.Tensor | None = None


@torch.no_grad()
def denoise(
    model: "FlowModel",
    noise_BSCHW: torch.Tensor,
    *,
    text: "Text",
    schedule: Schedule,
    recorder: "Recorder | None" = None,
    twin_B: np.ndarray | None = None,
) -> Trajectory:
    """Denoise a batch. `noise_BSCHW` holds the start and then one noise per step (the ODE needs only the start).

    With a `recorder` every step's maps are kept. Rows of equal `twin_B` have the same start and prompt: until the first noisy
    step one of them is computed for all.
    """
    x, rows = noise_BSCHW[:, 0].to(model.device), slice(None)
    together = twin_B is not None and not model.compiled  # compiled, another batch size would be another program
    if together:
        rows, of_B = (torch.from_numpy(found) for found in np.unique(twin_B, return_index=True, return_inverse=True)[1:])
        x = x[rows]
    latents, log_probs, maps, means = [x], [], [], []
    for t in range(len(schedule)):
        # Here twins part.
        if together and schedule.std[t] > 0:
            together, rows = False, slice(None)
            latents, log_probs, maps, means = ([each[of_B] for each in kept] for kept in (latents, log_probs, maps, means))
            x = latents[-1]

        # One velocity; compiled, it must be the update's program for a ratio of 1.
        watching = None if recorder is None else recorder.of(rows)
        with torch.set_grad_enabled(model.compiled):
            v = model.velocity(x, schedule.sigma[t].item(), text[rows], watching).detach()

        # The next latents, and how likely they were.
        mean = x_next = step_mean(schedule, t, x, v)
        if schedule.std[t] > 0:
            x_next = mean + schedule.std[t].item() * noise_BSCHW[:, t + 1].to(model.device)
            log_probs.append(log_prob(schedule, t, x_next, mean))
        else:
            log_probs.append(torch.zeros_like(mean[:, 0]))
        if watching is not None:
            maps.append(watching.raw_maps().unflatten(-1, model.geometry.tokens).half())
        means.append(mean)
        latents.append(x_next)
        x = x_next
    return Trajectory(
        latents_BSCHW=torch.stack(latents, 1),
        log_prob_BTHW=torch.stack(log_probs, 1),
        raw_BTOhw=torch.stack(maps, 1) if maps else None,
        mean_BTCHW=torch.stack(means, 1),
    )
