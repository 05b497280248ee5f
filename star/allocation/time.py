"""Weights of the trained steps: how much of the update each denoising step, or each noised time, gets. Source: ours.

Signal and noise of a step are measured while training (docs/method.md): noise is the norm of the step's own gradient, signal
the inner product of that gradient with the optimizer's momentum, which knows nothing of the batch. Both are running means over
updates, kept in a table that belongs to the training's state.

Shapes: N steps that may be trained, T steps trained in an epoch, R rollouts, H W latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

DECAY = 0.98  # of the running means: they remember some 50 updates
LEAST = 0.1  # of the mean weight: a step that got none could not be measured again


@dataclass
class Measured:
    """Running sums over updates, float64 [N] each: of the decaying counts, of squared norms, of projections on the momentum.

    `square` and `updates` (count), `projected`, `projected_square`, `signals` (count) and `signals_square`: the last three
    since there is a momentum. All of unit weight: of the gradient that the step has at weight 1.
    """

    table: torch.Tensor

    @classmethod
    def nothing(cls, steps: int) -> "Measured":
        """Before the first update."""
        return cls(torch.zeros(6, steps, dtype=torch.float64))

    def observe(self, step: int, norm: float, projection: float | None) -> None:
        """Note a step's gradient: its norm and its projection on the momentum's direction, None without momentum."""
        column = self.table[:, step]
        column[:2] = DECAY * column[:2] + torch.tensor([norm**2, 1.0], dtype=torch.float64)
        if projection is not None:
            decay = torch.tensor([DECAY, DECAY, DECAY, DECAY**2], dtype=torch.float64)
            column[2:] = decay * column[2:] + torch.tensor([projection, projection**2, 1.0, 1.0], dtype=torch.float64)

    def means(self, steps: Sequence[int]) -> dict[str, float]:
        """`noise_step<t>`, the root mean square norm, and `signal_step<t>`, the mean projection, where they were measured."""
        square, count, projected, _, signals, _ = self.table.tolist() if self.table.numel() else [()] * 6
        noise = {f"noise_step{t}": (square[t] / count[t]) ** 0.5 for t in steps if t < len(count) and count[t]}
        return noise | {f"signal_step{t}": projected[t] / signals[t] for t in steps if t < len(count) and signals[t]}

    def noise(self, predicted: np.ndarray) -> np.ndarray:
        """The root mean square norm of the steps' gradients, [N]: what was measured, else `predicted` up to its scale.

        The scale is that at which prediction and measurement agree in the (geometric) mean, where both are.
        """
        square, count = self.table[:2].numpy()
        seen = (count > 0) & (square > 0)
        if not seen.any():
            return predicted
        measured = np.sqrt(square[seen] / count[seen])
        scale = np.exp(np.mean(np.log(measured / predicted[seen])))
        noise = scale * predicted
        noise[seen] = measured
        return noise

    def ratio(self, noise: np.ndarray) -> np.ndarray | None:
        """Signal over noise of the steps, [N], shrunk towards their mean as far as they are uncertain; None without a signal.

        Empirical Bayes: the variance among steps beyond that of measurement is theirs. Steps that were not measured get the
        mean. None where fewer than two steps have two measurements, or the mean is not positive.
        """
        projected, square, count, count_square = self.table[2:].numpy()
        seen = count_square > 0
        effective = np.where(seen, count**2 / np.where(seen, count_square, 1.0), 0.0)
        known = effective > 1.5
        if known.sum() < 2:
            return None
        mean = projected[known] / count[known]
        variance = np.maximum(square[known] / count[known] - mean**2, 0.0) / (effective[known] - 1)
        ratio, uncertain = mean / noise[known], variance / noise[known] ** 2
        centre = ratio.mean()
        if centre <= 0:
            return None
        own = max(ratio.var(ddof=1) - uncertain.mean(), 0.0)
        shrunk = np.full(len(noise), centre)
        shrunk[known] = centre + (ratio - centre) * own / (own + uncertain + np.finfo(float).tiny)
        return shrunk.clip(0.0)


def step_weights(
    time: str | Sequence[float], steps: Sequence[int], *, first: int, predicted: np.ndarray, measured: Measured
) -> list[float]:
    """The weights of the epoch's trained `steps`, mean 1.

    `time` is the setting; a list starts at step `first`. `predicted` [N] is how large each step's gradient is by what the
    sampler's coefficients say. `equal_noise` is 1 / noise, `snr` signal / noise, `measured` signal / noise^2, which points the
    update best where the steps' noises are independent. Without a measured signal `measured` is `equal_noise`, `snr` is equal.
    """
    if time == "equal":
        return [1.0] * len(steps)
    if not isinstance(time, str):
        chosen = np.array([time[step - first] for step in steps], float)
        return (chosen / chosen.mean()).tolist() if chosen.any() else [1.0] * len(steps)
    noise = measured.noise(predicted)
    ratio = None if time == "equal_noise" else measured.ratio(noise)
    weight = np.ones(len(noise)) if ratio is None else ratio
    weight = (weight if time == "snr" else weight / noise)[list(steps)]
    if not weight.any():
        return [1.0] * len(steps)
    weight = np.maximum(weight / weight.mean(), LEAST)
    return (weight / weight.mean()).tolist()


def shared_out(weight_T: Sequence[float], map_RTHW: torch.Tensor | None) -> torch.Tensor:
    """What multiplies the rollouts' losses at the trained steps, float32 [R, T]; [1, T] where it is the same for all.

    Maps normalised over the trajectory weigh steps too. A rollout's total over steps and places then stays 1.
    """
    weight = torch.tensor(weight_T, dtype=torch.float32)[None]
    if map_RTHW is None or len(set(weight_T)) == 1:
        return weight
    of_step_RT = map_RTHW.mean((-1, -2)).cpu()
    return weight / (weight * of_step_RT).mean(1, keepdim=True)
