"""Allocation maps: from raw attention to non-negative weights of mean exactly one. Source: ours (method section 3).

Shapes: B rollouts, T steps, O recorded blocks, h w token grid, H W latent grid (2 x 2 latents a token).
"""

import math

import torch
import torch.nn.functional as F

from star.config import Allocation

_TINY = torch.finfo(torch.float32).tiny


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


def _repeat(map_BThw: torch.Tensor, times: int) -> torch.Tensor:
    return map_BThw.repeat_interleave(times, -1).repeat_interleave(times, -2)


def over_steps(raw_BThw: torch.Tensor, which: str | int) -> torch.Tensor:
    """The raw maps that the steps use: their own (`each`), that of the `first` or `last` step, or `which` distinct ones.

    A number n cuts the trajectory into n runs of steps of (nearly) equal length; a run shares the mean of its maps.
    """
    steps = raw_BThw.shape[1]
    if which == "each":
        return raw_BThw
    if which in ("first", "last"):
        t = 0 if which == "first" else steps - 1
        return raw_BThw[:, t : t + 1].expand_as(raw_BThw)
    run_T = torch.arange(steps) * which // steps
    means = [raw_BThw[:, run_T == run].mean(1) for run in range(which) if (run_T == run).any()]
    return torch.stack(means, 1)[:, torch.unique(run_T, return_inverse=True)[1]]


def token_map(
    raw_BThw: torch.Tensor,
    *,
    smoothing: float,
    sharpness: float,
    floor: float,
    granularity: int | str = 1,
    normalisation: str = "per_step",
) -> torch.Tensor:
    """Weights on the token grid, float32 [B, T, h, w]: non-negative, mean exactly 1.

    Smooth, pool by `granularity` tokens a side (`all`: to one value a step), raise to `sharpness`, blend with a uniform
    `floor`, divide by the mean: over the locations of every step (`per_step`), or over steps and locations jointly
    (`per_trajectory`). A constant raw map (a prompt without core tokens has zeros) gives exactly ones. Raises ValueError on
    values that are not finite and on a granularity that does not divide the grid.
    """
    raw = raw_BThw.float()
    if not raw.isfinite().all():
        raise ValueError("the raw attention map has values that are not finite")
    over = (-1, -2) if normalisation == "per_step" else (-1, -2, -3)

    def relative_to(statistic: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x / statistic.clamp_min(_TINY)

    raw = raw.clamp_min(0)
    flat = raw.amin(over, keepdim=True) == raw.amax(over, keepdim=True)
    x = _smooth(relative_to(raw.amax(over, keepdim=True), raw), smoothing)
    if granularity == "all":
        x = x.mean((-1, -2), keepdim=True).expand_as(x)
    elif granularity > 1:
        if any(side % granularity for side in x.shape[-2:]):
            raise ValueError(f"allocation.granularity: {granularity} does not divide the grid of {tuple(x.shape[-2:])} tokens")
        x = _repeat(F.avg_pool2d(x, granularity), granularity)
    flat = flat | (x.amin(over, keepdim=True) == x.amax(over, keepdim=True))
    x = relative_to(x.amax(over, keepdim=True), x) ** sharpness
    x = floor + (1 - floor) * relative_to(x.mean(over, keepdim=True), x)
    return torch.where(flat, torch.ones_like(x), x / x.mean(over, keepdim=True))


def moved(map_BThw: torch.Tensor, noise_BThw: torch.Tensor, smooth: bool) -> torch.Tensor:
    """A control: every map keeps its very weights at other places, drawn anew for every rollout and step.

    The order of places is that of standard normal noise: independent (`shuffled`), or a Gaussian field of one token's width
    (`random`, which looks like a map). Source: method section 4; the field is ours.
    """
    order = (_smooth(noise_BThw, 1.0) if smooth else noise_BThw).flatten(-2).argsort(-1)
    values = map_BThw.flatten(-2).sort(-1).values
    return torch.empty_like(values).scatter_(-1, order, values).view(map_BThw.shape)


def allocation_map(
    allocation: Allocation,
    raw_BTOhw: torch.Tensor,
    region_Bhw: torch.Tensor | None,
    trained: range,
    noise_BThw: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights M of the trained steps, float32 [B, len(trained), H, W], as `allocation` says.

    `raw_BTOhw` holds the recorded blocks' maps of all steps; `region_Bhw` the share of every token that true objects cover,
    which only `source: oracle` needs; `noise_BThw` standard normal noise of the trained steps, which `random` and `shuffled`
    need.
    """
    raw_BThw = raw_BTOhw.float().mean(2)
    if allocation.source == "uniform":
        raw_BThw = torch.zeros_like(raw_BThw)
    elif allocation.source == "oracle":
        raw_BThw = region_Bhw.float()[:, None].expand_as(raw_BThw)
    raw_BThw = over_steps(raw_BThw, allocation.steps)[:, list(trained)]
    if allocation.control == "inverse":
        raw_BThw = raw_BThw.amax((-1, -2), keepdim=True) + raw_BThw.amin((-1, -2), keepdim=True) - raw_BThw
    M_BThw = token_map(
        raw_BThw,
        smoothing=allocation.smoothing,
        sharpness=allocation.sharpness,
        floor=allocation.floor,
        granularity=allocation.granularity,
        normalisation=allocation.normalisation,
    )
    if allocation.control in ("random", "shuffled"):
        M_BThw = moved(M_BThw, noise_BThw, smooth=allocation.control == "random")
    return _repeat(M_BThw, 2)


def entropy(M_BTHW: torch.Tensor) -> torch.Tensor:
    """Entropy of a rollout's maps relative to the uniform map's, mean over steps, [B] in 0..1."""
    p = M_BTHW.flatten(-2) / M_BTHW.flatten(-2).sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(p.shape[-1])).mean(-1)


def effective_area(M_BTHW: torch.Tensor) -> torch.Tensor:
    """Share of locations that carry the weight, (sum M)^2 / (n sum M^2), mean over steps, [B] in 0..1."""
    m = M_BTHW.flatten(-2)
    return (m.sum(-1) ** 2 / (m.shape[-1] * (m**2).sum(-1))).mean(-1)


def drift(M_BTHW: torch.Tensor) -> torch.Tensor:
    """Share of the weight that moves from a step to the next (total variation), mean over steps, [B] in 0..1.

    nan for maps of a single step.
    """
    p = M_BTHW.flatten(-2) / M_BTHW.flatten(-2).sum(-1, keepdim=True)
    return (p[:, 1:] - p[:, :-1]).abs().sum(-1).mean(-1) / 2


def localisation(map_BNhw: torch.Tensor, region_Bhw: torch.Tensor) -> torch.Tensor:
    """Localisation gain of a rollout's N maps, [B, N]: share of map mass inside the true objects over their share of the area.

    1 is chance, 1 / area perfect; nan for rollouts whose pictures hold no objects.
    """
    region_Bhw = region_Bhw.float()
    inside_BN = (map_BNhw.float() * region_Bhw[:, None]).sum((-1, -2)) / map_BNhw.float().sum((-1, -2)).clamp_min(_TINY)
    return inside_BN / region_Bhw.mean((-1, -2))[:, None]  # 0 / 0 is nan
