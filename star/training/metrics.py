"""What a training says of itself: numbers collected as tensors and read once an optimizer step; diagnostics of maps; memory.

Shapes: M micro-batch, R rollouts held by this process, T trained steps, O recorded blocks, H W latents, h w token grid.
"""

import resource
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.allocation.maps import drift, effective_area, entropy, localisation
from star.objectives.points import Terms
from star.training.processes import Processes

if TYPE_CHECKING:
    from star.training.epoch import Epoch, Session
    from star.training.rollout import Rollouts


class Meter:
    """Collects an update's numbers on the device; nothing is read from it before `not_finite` or `row`."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._finite: list[tuple[str, torch.Tensor, int, list[str]]] = []  # part, loss [M], denoising step, prompts
        self._deviation: list[tuple[torch.Tensor, int]] = []
        self._numbers: dict[str, list[tuple[torch.Tensor | float, float]]] = defaultdict(list)  # value and what it is times

    def add(
        self, terms: Terms, sums: dict[str, torch.Tensor], *, count: int, total: int, step: int, prompts: list[str]
    ) -> None:
        """Note one point: of its terms the first `count` samples count, of `total` samples and points of the update."""
        for name, (_, part_M) in terms.parts.items():
            self._finite.append((name, part_M.detach(), step, prompts))
        if terms.ratio is not None:
            self._deviation.append(((terms.ratio - 1).abs().max(), step))
        if count == 0:
            return
        for name, value in sums.items():
            self._numbers[name].append((value.detach(), total / count))
        for name, value_M in terms.means.items():
            self._numbers[name].append((value_M[:count].mean(), 1.0))
        if terms.ratio is not None:
            self._note_ratio(terms.ratio[:count], step)
        if "clip_fraction" in terms.means:
            self._numbers[f"clip_fraction_step{step}"].append((terms.means["clip_fraction"][:count].mean(), 1.0))

    def _note_ratio(self, ratio: torch.Tensor, step: int) -> None:
        """Its extremes, and at the denoising step how far from 1 it is and how far log-probabilities moved, in the mean."""
        numbers = {
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
            f"ratio_deviation_step{step}": (ratio - 1).abs().mean(),
            f"log_prob_change_step{step}": ratio.log().abs().mean(),
        }
        for name, value in numbers.items():
            self._numbers[name].append((value, 1.0))

    def add_gradient(self, norm: torch.Tensor, signal: torch.Tensor | None, *, count: int, total: int, step: int) -> None:
        """Note the gradient of one point's share of an update's loss: the norm is that of the point's own mean loss."""
        if count == 0:
            return
        self._numbers[f"grad_norm_step{step}"].append((norm, total / count))
        if signal is not None:
            self._numbers[f"gradient_signal_step{step}"].append((signal, 1.0))

    def note(self, **values: torch.Tensor | float) -> None:
        """Note numbers of the optimizer step."""
        for name, value in values.items():
            self._numbers[name].append((value, 1.0))

    def extend(self, other: "Meter") -> None:
        """Take over the numbers of another meter, reading all of them from the device at once."""
        tensors = [value for pairs in other._numbers.values() for value, _ in pairs if isinstance(value, torch.Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        for name, pairs in other._numbers.items():
            values = [(next(read) if isinstance(value, torch.Tensor) else value, factor) for value, factor in pairs]
            self._numbers[name] += values

    def not_finite(self) -> str | None:
        """Names part, step and prompt of a loss that is not finite; None where all are. One read for all points."""
        if not self._finite or bool(torch.stack([part_M.isfinite().all() for _, part_M, _, _ in self._finite]).all()):
            return None
        name, part_M, step, prompts = next(f for f in self._finite if not f[1].isfinite().all())
        m = int((~part_M.isfinite()).nonzero()[0])
        spoken = {"policy_loss": "policy loss", "kl": "KL to the base"}.get(name, name)
        return (
            f"{spoken} is {part_M[m].item()} (epoch {self._epoch}, denoising step {step}, prompt {prompts[m]!r}); "
            "weights are untouched"
        )

    def require_ratio_one(self, allowed: float) -> None:
        """Raise RuntimeError when a ratio was further than `allowed` from 1."""
        deviations = torch.stack([deviation for deviation, _ in self._deviation]).tolist() if self._deviation else []
        for deviation, (_, step) in zip(deviations, self._deviation, strict=True):
            if not deviation <= allowed:
                raise RuntimeError(f"ratio off 1 by {deviation:.1e} before the first update (epoch {self._epoch}, step {step})")

    def row(self, processes: Processes) -> dict[str, float]:
        """Means over points, updates and processes, and the extremes of the ratio, of meters that were taken over."""
        mine = {name: [value * factor for value, factor in pairs] for name, pairs in self._numbers.items()}
        everyones = processes.gather(mine)  # the first process always has a micro-batch that counts, others may have none
        values = {name: [v for one in everyones for v in one.get(name, [])] for name in everyones[0]}
        row = {name: float(np.mean(each)) for name, each in values.items()}
        if "ratio_min" in values:
            row |= {"ratio_min": float(np.min(values["ratio_min"])), "ratio_max": float(np.max(values["ratio_max"]))}
            row["ratio_max_deviation"] = max(row["ratio_max"] - 1, 1 - row["ratio_min"])
        return row


def map_diagnostics(map_RTHW: torch.Tensor | None, rollouts: "Rollouts", blocks: tuple[int, ...], processes: Processes) -> dict:
    """What metrics.jsonl says of an epoch's maps, means over its rollouts; nothing for the scalar objective.

    Where the true objects are known: the localisation gain of the weights, and of the raw attention by block and step.
    """
    if map_RTHW is None:
        return {}
    values = {"map_entropy": entropy(map_RTHW), "map_effective_area": effective_area(map_RTHW), "map_drift": drift(map_RTHW)}
    if rollouts.region_Rhw is not None:
        area_R, weights_RThw = rollouts.region_Rhw.mean((1, 2)), map_RTHW[..., ::2, ::2]
        area_R = area_R.where(area_R > 0, torch.nan)  # pictures without objects count nowhere
        values["object_area"] = area_R
        values["map_localisation"] = localisation(weights_RThw, rollouts.region_Rhw).mean(1)
        values["gradient_inside"] = localisation(weights_RThw**2, rollouts.region_Rhw).mean(1) * area_R
        for o, block in enumerate(blocks):
            gain_RT = localisation(rollouts.raw_RTOhw[:, :, o], rollouts.region_Rhw)
            values |= {f"localisation_block{block}_step{t}": gain_R for t, gain_R in enumerate(gain_RT.unbind(1))}
    all_BN = processes.in_order(torch.stack(list(values.values()), 1), rollouts.row_R)
    means = (x.item() for x in all_BN.nanmean(0))  # nan: no objects in the picture, or one step only
    return {name: None if np.isnan(mean) else mean for name, mean in zip(values, means, strict=True)}


def time_diagnostics(session: "Session", epoch: "Epoch") -> dict[str, float]:
    """What metrics.jsonl says of the weights of steps; nothing where they are equal by the settings."""
    if session.settings.allocation.time == "equal":
        return {}
    steps = epoch.trained if session.objective.noisy else range(len(epoch.weights))
    row = {f"weight_step{step}": weight for step, weight in zip(steps, epoch.weights, strict=True)}
    return row | session.learner.measured.means(steps)


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process on its device, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
