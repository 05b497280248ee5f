"""What forward-process objectives share: noised points of clean rollouts, and the error of a velocity there.

x_t = (1 - t) x0 + t noise, v* = noise - x0, and the prediction of x0 is x_t - t v.

Shapes: M micro-batch, C latent channels, H W latent grid, K times a sample. Source: arXiv 2509.16117; maps and strata are ours
(docs/method.md).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.spread import spread
from star.flow.seeding import rng

if TYPE_CHECKING:
    from star.training.epoch import Epoch
    from star.training.rollout import Rollouts


@dataclass(frozen=True)
class Noised:
    """A point of the forward process: clean latents, fresh noise and the noise level of every sample.

    `index` counts the times of a sample; `x`, `x0`, `noise` are float32 [M, C, H, W], `sigma` is float64 [M].
    """

    index: int
    sigma: torch.Tensor
    x0: torch.Tensor
    noise: torch.Tensor

    @property
    def step(self) -> int:
        """The number of the time, which stands for a denoising step in messages."""
        return self.index

    @property
    def x(self) -> torch.Tensor:
        """The noised latents."""
        t = self.t
        return (1 - t) * self.x0 + t * self.noise

    @property
    def t(self) -> torch.Tensor:
        """The noise levels, float32 [M, 1, 1, 1]."""
        return self.sigma.float()[:, None, None, None]

    def to(self, device: torch.device) -> "Noised":
        return Noised(self.index, self.sigma.to(device), self.x0.to(device), self.noise.to(device))


def strata(levels: int, times: int) -> list[range]:
    """`levels` places cut into `times` runs of (nearly) equal length, in order; each gives one trained time.

    Raises ValueError when there are fewer places than times.
    """
    if times > levels:
        raise ValueError(f"{times} times do not fit into {levels} noise levels")
    edges = [k * levels // times for k in range(times + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def rollout_points(
    epoch: "Epoch", rollouts: "Rollouts", rows: np.ndarray, *, levels: torch.Tensor, times: int
) -> Iterator[Noised]:
    """The points of some clean rollouts of the epoch; (seed, epoch, prompt, rollout) name their random numbers."""
    size = int((rollouts.prompt_B == rollouts.prompt_B[0]).sum())
    names = [(epoch.seed, epoch.number, epoch.ids[rollouts.prompt_B[row]], int(row % size)) for row in rows]
    return noised_points(rollouts.latents_RSCHW[rollouts.places(rows), -1], names, sigmas=levels, times=times)


def noised_points(
    x0_MCHW: torch.Tensor, names: list[tuple[int | str, ...]], *, sigmas: torch.Tensor, times: int
) -> Iterator[Noised]:
    """`times` points of every sample, one from each stratum of `sigmas`, with noise of its own.

    `names` name the random numbers of each sample, so that they depend on no batch and no process.
    """
    rngs = [rng("noised", *name) for name in names]
    for index, places in enumerate(strata(len(sigmas), times)):
        chosen = [places.start + int(torch.randint(len(places), (), generator=generator)) for generator in rngs]
        noise = torch.stack([torch.randn(x0_MCHW.shape[1:], generator=generator) for generator in rngs])
        yield Noised(index, sigmas[chosen].double(), x0_MCHW, noise)


def x0_error(point: Noised, v_MCHW: torch.Tensor) -> torch.Tensor:
    """The prediction of x0 minus x0, float64 [M, C, H, W]."""
    return (point.x - point.t * v_MCHW - point.x0).double()


def normaliser(error_MCHW: torch.Tensor) -> torch.Tensor:
    """The adaptive weight w of a sample, without gradient: the mean size of its error, at least 1e-5; float64 [M]."""
    return error_MCHW.detach().abs().mean((1, 2, 3)).clamp_min(1e-5)


def squared(error_MCHW: torch.Tensor, map_MHW: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over channels and places of the map times the squared error, [M]; the map's mean is one."""
    return spread((error_MCHW**2).mean(1), map_MHW)


def velocity_distance(a_MCHW: torch.Tensor, b_MCHW: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of two velocities, [M]; the KL to a reference up to a factor (Girsanov)."""
    return ((a_MCHW - b_MCHW) ** 2).mean((1, 2, 3))


def old_policy_decay(schedule: str, epoch: int) -> float:
    """How much of the old policy stays after an epoch: DiffusionNFT's types 0 to 2 as `none`, `ramp` and `late_ramp`.

    `none` 0, `ramp` min(0.001 epoch, 0.5), `late_ramp` 0 before epoch 75, then min(0.0075 (epoch - 75), 0.999).
    """
    if schedule == "none":
        return 0.0
    if schedule == "ramp":
        return min(0.001 * epoch, 0.5)
    return 0.0 if epoch < 75 else min(0.0075 * (epoch - 75), 0.999)
