"""The tables of a measurement: allocations under three weightings of the steps, steps alone, octiles of a map.

Shapes: K batches, T trained steps of a batch, S denoising steps of all batches, R resamples.
"""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from star.credit import statistics as credit
from star.credit.allocations import OCTILE, SCALAR
from star.credit.measure import read
from star.credit.statistics import WEIGHTINGS, Moments, Resamples, Sums

FEWEST = 4  # batches, two in each of the halves that weights are measured and tested on


class Estimates:
    """Moments of every row in every resample, from the folders of some batches; `rows` begin with the scalar objective.

    Signals are taken `towards` the mean scalar gradient. Of `equal` steps it is the true gradient. Of `equal_noise` it has
    less noise, and is the true gradient's direction as far as the steps agree on one.
    """

    def __init__(self, rows: list[str], folders: list[Path], dimensions: int, *, towards: str = "equal") -> None:
        self.names, self.batches, self.dimensions = rows, len(folders), dimensions
        steps_KT = read(folders, SCALAR, "steps").numpy()
        self.steps = sorted(set(steps_KT.flatten().tolist()))
        place_KTS = (steps_KT[:, :, None] == np.array(self.steps)).astype(float)
        self.share_S = place_KTS.sum((0, 1)) / self.batches
        resamples = Resamples.draw(self.batches)
        half_K = np.arange(self.batches) % 2 == 0
        halves = [resamples.of(fold_K) for fold_K in (half_K, ~half_K)]
        scalar_KTD, scaled_KTD = (read(folders, SCALAR, tensor).numpy() for tensor in ("sketch", "scaled"))
        towards_S = np.ones(len(self.steps))
        self.moments: dict[str, Moments] = {}
        self.halves: dict[str, tuple[Moments, Moments]] = {}
        for name in self.names:
            sketch_KTD, gram_KTT = (read(folders, name, tensor).numpy() for tensor in ("sketch", "scaled_gram"))
            of = credit.products(sketch_KTD, scalar_KTD, scaled_KTD, gram_KTT, place_KTS)
            if name == SCALAR and towards != "equal":
                scalar = credit.moments(of, resamples, towards_S)
                towards_S = credit.weights(towards, scalar, scalar, self.share_S)[0]
            self.moments[name] = credit.moments(of, resamples, towards_S)
            if OCTILE not in name:
                self.halves[name] = tuple(credit.moments(of, half, towards_S) for half in halves)
        self.direction = credit.weighed(self.moments[SCALAR], np.broadcast_to(towards_S, self.moments[SCALAR].signal.shape))

    def sums(self, name: str, weighting: str) -> Sums:
        """An allocation's moments under a weighting; `measured` has its weights from one half of the batches, for the other."""
        if weighting != "measured":
            own, scalar = self.moments[name], self.moments[SCALAR]
            return credit.weighed(own, credit.weights(weighting, own, scalar, self.share_S))
        parts = []
        for here, there in ((0, 1), (1, 0)):
            weight_RS = credit.weights(weighting, self.halves[name][there], self.halves[SCALAR][there], self.share_S)
            parts.append(credit.weighed(self.halves[name][here], weight_RS))
        return Sums(*((getattr(parts[0], field.name) + getattr(parts[1], field.name)) / 2 for field in fields(Sums)))


def allocations(estimates: Estimates) -> pd.DataFrame:
    """A row an allocation and weighting of the steps: estimates with the limits of their intervals (`<name>_low`, `_high`).

    signal and noise (over the scalar objective's), cosine, efficiency, same_steps (efficiency over the scalar objective with
    steps so weighted), gain (of an AdamW step), bias; `measurable`: whether the interval of the cosine lies above 0;
    `projection_error`: the standard error that projecting adds to the signal, relative to it.
    """
    base, rows = estimates.sums(SCALAR, "equal"), []
    for weighting in WEIGHTINGS:
        same = estimates.sums(SCALAR, weighting)
        for name in estimates.names:
            if OCTILE in name:
                continue
            own = estimates.sums(name, weighting)
            cosine_R = credit.cosine(own, estimates.direction)
            values = {
                "signal": own.signal / base.signal,
                "noise": own.noise / base.noise,
                "cosine": cosine_R,
                "efficiency": credit.efficiency(own, base),
                "same_steps": credit.efficiency(own, same),
                "gain": credit.gain(own, base),
                "bias": credit.bias(own, estimates.direction),
            }
            row = {"allocation": name, "steps": weighting, "batches": estimates.batches}
            for column, value_R in values.items():
                row |= dict(zip((column, f"{column}_low", f"{column}_high"), credit.interval(value_R), strict=True))
            row["measurable"] = credit.measurable(cosine_R)
            row["projection_error"] = _projection_error(own, estimates)
            rows.append(row)
    return pd.DataFrame(rows)


def _projection_error(own: Sums, estimates: Estimates) -> float:
    """|mean gradient| |mean scalar gradient| sqrt(2 / D) / signal, the means being of the batches that there are."""
    lengths = [s.mean[0] + (s.noise[0] - s.mean[0]) / estimates.batches for s in (own, estimates.direction)]
    return float(np.sqrt(2 * lengths[0] * lengths[1] / estimates.dimensions) / abs(own.signal[0]))


def steps(estimates: Estimates) -> pd.DataFrame:
    """A row an allocation and denoising step.

    signal and noise: the step's shares of the whole; efficiency: of the step alone, towards its own true gradient, over the
    scalar objective's; the weights of the two other weightings.
    """
    base, rows = estimates.moments[SCALAR], []
    for name, own in estimates.moments.items():
        if OCTILE in name:
            continue
        weights = {rule: credit.weights(rule, own, base, estimates.share_S)[0] for rule in WEIGHTINGS[1:]}
        noise_RS, base_RS = (np.einsum("rss->rs", of.noise) for of in (own, base))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_RS = own.step_signal / base.step_signal
            efficiency_RS = np.sign(ratio_RS) * ratio_RS**2 * base_RS / noise_RS
            values = {
                "signal": own.signal / own.signal.sum(1, keepdims=True),
                "noise": noise_RS / noise_RS.sum(1, keepdims=True),
                "efficiency": efficiency_RS,
            }
        for s, step in enumerate(estimates.steps):
            row = {"allocation": name, "step": step, "batches": estimates.batches}
            for column, value_RS in values.items():
                row |= dict(zip((column, f"{column}_low", f"{column}_high"), credit.interval(value_RS[:, s]), strict=True))
            rows.append(row | {f"weight_{rule}": weight_S[s] for rule, weight_S in weights.items()})
    return pd.DataFrame(rows)


def octiles(estimates: Estimates) -> pd.DataFrame:
    """A row an eighth of the places, by the weight of one allocation's map: its shares of the scalar signal and noise."""
    base, rows = estimates.sums(SCALAR, "equal"), []
    parts = {name: estimates.sums(name, "equal") for name in estimates.names if OCTILE in name}
    noise = sum(part.noise for part in parts.values()) if parts else None
    for name, part in parts.items():
        of, _, octile = name.rpartition(OCTILE)
        row = {"allocation": of, "octile": int(octile), "batches": estimates.batches}
        for column, value_R in {"signal": part.signal / base.signal, "noise": part.noise / noise}.items():
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), credit.interval(value_R), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def enough(batches: list[Path], *, watched: list[str], width: float | None, dimensions: int) -> bool:
    """Whether no interval of the efficiency of the `watched` allocations, equal steps, is wider than `width`; None: never."""
    if width is None or len(batches) < FEWEST:
        return False
    estimates = Estimates([SCALAR, *watched], sorted(batches), dimensions)
    base = estimates.sums(SCALAR, "equal")
    limits = [credit.interval(credit.efficiency(estimates.sums(name, "equal"), base))[1:] for name in watched]
    return all(high - low <= width for low, high in limits)  # a limit that is not defined is never close
