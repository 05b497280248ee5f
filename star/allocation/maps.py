"""Allocation maps: from raw attention to non-negative weights of mean exactly one. Source: ours (method section 3).

Shapes: B rollouts, T steps, h w token grid, H W latent grid (2 x 2 latents a token).
"""

import math

import torch
import torch.nn.functional as F


def _smooth(map_NChw: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing with reflected borders; sigma in tokens."""
    if sigma == 0:
        return map_NChw
    radius = min(math.ceil(3 * sigma), min(map_NChw.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=map_NChw.dtype, device=map_NChw.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(map_NChw, (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded.flatten(0, 1)[:, None], kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1)).view_as(map_NChw)


def allocation_map(raw_BThw: torch.Tensor, *, smoothing: float, sharpness: float, floor: float) -> torch.Tensor:
    """Weights M, float32 [B, T, H, W]: non-negative, mean exactly 1 over the locations of every step.

    Smooth, divide by the mean, raise to `sharpness`, blend with a uniform `floor`. A constant raw map (a prompt without core
    tokens has zeros) gives exactly ones; values that are not finite raise ValueError.
    """
    raw = raw_BThw.float()
    if not raw.isfinite().all():
        raise ValueError("the raw attention map has values that are not finite")
    raw = raw.clamp_min(0)
    flat = (raw == raw[..., :1, :1]).all(-1).all(-1)[..., None, None]
    scaled = _smooth(raw / raw.amax((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny), smoothing)
    sharp = (scaled / scaled.amax((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)) ** sharpness
    sharp = sharp / sharp.mean((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    blended = floor + (1 - floor) * sharp
    blended = blended / blended.mean((-1, -2), keepdim=True)
    M_BThw = torch.where(flat, torch.ones_like(blended), blended)
    return M_BThw.repeat_interleave(2, -1).repeat_interleave(2, -2)


def random_map(raw_BThw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The random-map control: smooth noise at every step with the very values of the raw map, at other places.

    A smooth Gaussian field (sigma 1 token) gives the order of locations, the raw map's sorted values go there: same
    distribution of values, no relation to the prompt. Source: the control that method section 4 asks for; the field is ours.
    """
    noise = torch.randn(raw_BThw.shape, generator=generator).to(raw_BThw.device)
    order = _smooth(noise, 1.0).flatten(-2).argsort(-1)
    values = raw_BThw.float().flatten(-2).sort(-1).values
    return torch.empty_like(values).scatter_(-1, order, values).view(raw_BThw.shape)


def entropy(M_BTHW: torch.Tensor) -> float:
    """Mean entropy of the maps relative to the uniform map's, 0..1."""
    p = M_BTHW.flatten(-2) / M_BTHW.flatten(-2).sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(p.shape[-1])).mean().item()


def effective_area(M_BTHW: torch.Tensor) -> float:
    """Mean share of locations that carry the weight: (sum M)^2 / (n sum M^2), 0..1."""
    m = M_BTHW.flatten(-2)
    return (m.sum(-1) ** 2 / (m.shape[-1] * (m**2).sum(-1))).mean().item()
