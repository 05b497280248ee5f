"""From projected gradients of many batches to estimates with intervals. Source: ours (docs/credit.md).

Every estimate is made of moments: means over pairs of different batches, which are unbiased, and over batches. Intervals are
percentiles over bootstrap resamples of the batches, the same resamples for all allocations; a batch never meets itself.

Shapes: K batches, T trained steps of a batch, S denoising steps of all batches, D dimensions, R resamples (the first is the
sample itself).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

RESAMPLES, CONFIDENCE = 2000, 0.95
WEIGHTINGS = ("equal", "equal_noise", "measured")


@dataclass(frozen=True)
class Products:
    """Inner products of one allocation's gradients, float64.

    [K, S, K, S]: `cross` with the scalar objective's gradients, `own` with each other, `scaled` with the scalar objective's in
    AdamW's scale. [K, S, S]: `scaled_gram` of a batch's steps, both in that scale. Steps that a batch does not train have
    zeros.
    """

    cross: np.ndarray
    own: np.ndarray
    scaled: np.ndarray
    scaled_gram: np.ndarray


@dataclass(frozen=True)
class Moments:
    """Of one allocation, by resample: signals [R, S] by step, noise [R, S, S] by pair of steps.

    `signal` is the inner product with the true gradient, `step_signal` that with the true gradient of the same step, `mean` the
    inner products of the expected gradients; `scaled_signal` and `scaled_noise` are those of AdamW's step.
    """

    signal: np.ndarray
    step_signal: np.ndarray
    noise: np.ndarray
    mean: np.ndarray
    scaled_signal: np.ndarray
    scaled_noise: np.ndarray


@dataclass(frozen=True)
class Resamples:
    """How often every batch is in every resample, [R, K]; the first row is ones."""

    count_RK: np.ndarray

    @classmethod
    def draw(cls, batches: int, resamples: int = RESAMPLES, seed: int = 0) -> "Resamples":
        """`resamples` of so many batches, after the sample itself."""
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(batches, np.full(batches, 1 / batches), resamples).astype(float)
        return cls(np.vstack([np.ones(batches), drawn]))

    def of(self, fold_K: np.ndarray) -> "Resamples":
        """The batches of a fold alone."""
        return Resamples(self.count_RK * fold_K)

    @cached_property
    def pairs(self) -> np.ndarray:
        """The weight of every pair of different batches, [R, K, K], which sums to 1; nan where a resample has none."""
        pair_RKK = self.count_RK[:, :, None] * self.count_RK[:, None]
        pair_RKK[:, np.arange(pair_RKK.shape[1]), np.arange(pair_RKK.shape[1])] = 0
        total_R = pair_RKK.sum((1, 2))
        return pair_RKK / np.where(total_R > 0, total_R, np.nan)[:, None, None]


def products(
    sketch_KTD: np.ndarray,
    scalar_KTD: np.ndarray,
    scaled_KTD: np.ndarray,
    scaled_gram_KTT: np.ndarray,
    place_KTS: np.ndarray,
) -> Products:
    """The inner products of projected gradients; `place_KTS` is 1 where a batch's step is the denoising step, else 0."""
    batches, steps, size = sketch_KTD.shape
    flat = sketch_KTD.reshape(batches * steps, size).astype(np.float64)

    def against(other_KTD: np.ndarray) -> np.ndarray:
        inner = flat @ other_KTD.reshape(batches * steps, size).astype(np.float64).T
        shaped = inner.reshape(batches, steps, batches, steps)
        return np.einsum("itju,its,juv->isjv", shaped, place_KTS, place_KTS, optimize=True)

    gram = np.einsum("ktu,kts,kuv->ksv", scaled_gram_KTT, place_KTS, place_KTS, optimize=True)
    return Products(against(scalar_KTD), against(sketch_KTD), against(scaled_KTD), gram)


def moments(of: Products, resamples: Resamples, towards_S: np.ndarray) -> Moments:
    """The moments of an allocation in every resample.

    Signals are inner products with the direction whose steps have the weights `towards_S`: ones give the true gradient.
    """
    pair_RKK, batches = resamples.pairs, len(of.cross)
    total_R1 = resamples.count_RK.sum(1, keepdims=True)
    weight_RK = resamples.count_RK / np.where(total_R1 > 0, total_R1, np.nan)
    itself = np.arange(batches)

    def over_pairs(value_KSK: np.ndarray) -> np.ndarray:
        return pair_RKK.reshape(len(pair_RKK), -1) @ value_KSK.transpose(0, 2, 1).reshape(batches**2, -1)

    steps = of.cross.shape[1]
    own = of.own.transpose(0, 2, 1, 3).reshape(batches**2, steps**2)
    return Moments(
        signal=over_pairs(of.cross @ towards_S),
        step_signal=over_pairs(np.einsum("isjs->isj", of.cross)),
        noise=np.einsum("rk,ksv->rsv", weight_RK, of.own[itself, :, itself]),
        mean=(pair_RKK.reshape(len(pair_RKK), -1) @ own).reshape(-1, steps, steps),
        scaled_signal=over_pairs(of.scaled @ towards_S),
        scaled_noise=np.einsum("rk,ksv->rsv", weight_RK, of.scaled_gram),
    )


def weights(rule: str, own: Moments, scalar: Moments, share_S: np.ndarray) -> np.ndarray:
    """Weights of the steps, [R, S], of mean one over the trained steps; `share_S` is the share of batches that train a step.

    `equal_noise`: one over the root mean square of the step's own gradient. `measured`: the scalar objective's signal over its
    noise, which is best where the noise of the steps is independent; at least 0.
    """
    if rule == "equal":
        return np.ones_like(own.signal)
    if rule == "equal_noise":
        square_RS = np.einsum("rss->rs", own.noise) / share_S
        raw_RS = np.where(square_RS > 0, 1 / np.sqrt(np.maximum(square_RS, 1e-300)), 0.0)
    else:
        noise_RS = np.einsum("rss->rs", scalar.noise)
        raw_RS = np.maximum(np.where(noise_RS > 0, scalar.signal / np.maximum(noise_RS, 1e-300), 0.0), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return raw_RS * share_S.sum() / (raw_RS * share_S).sum(1, keepdims=True)


@dataclass(frozen=True)
class Sums:
    """Moments summed over the steps with some weights, [R] each."""

    signal: np.ndarray
    noise: np.ndarray
    mean: np.ndarray
    scaled_signal: np.ndarray
    scaled_noise: np.ndarray


def weighed(of: Moments, weight_RS: np.ndarray) -> Sums:
    """The moments of the gradients whose steps have these weights."""

    def quadratic(value_RSS: np.ndarray) -> np.ndarray:
        return np.einsum("rs,rsv,rv->r", weight_RS, value_RSS, weight_RS)

    return Sums(
        signal=(weight_RS * of.signal).sum(1),
        noise=quadratic(of.noise),
        mean=quadratic(of.mean),
        scaled_signal=(weight_RS * of.scaled_signal).sum(1),
        scaled_noise=quadratic(of.scaled_noise),
    )


def efficiency(one: Sums, other: Sums) -> np.ndarray:
    """How many times fewer rollouts `one` needs than `other` for the same cosine with the true gradient, [R].

    The squared ratio of their expected cosines, with the sign of the signal.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = one.signal / other.signal
        return np.sign(ratio) * ratio**2 * other.noise / one.noise


def cosine(one: Sums, direction: Sums) -> np.ndarray:
    """The expected cosine of one batch's gradient with the direction, [R]; nan where its squared length is not positive.

    `direction` has the moments of the scalar gradient that signals are taken towards, so its signal is its squared length.
    """
    with np.errstate(invalid="ignore"):
        return one.signal / np.sqrt(np.where(direction.signal > 0, direction.signal, np.nan) * one.noise)


def gain(one: Sums, other: Sums) -> np.ndarray:
    """The expected gain of an AdamW step of `one` over that of an equally long step of `other`, [R]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return one.scaled_signal / np.sqrt(one.scaled_noise) / (other.scaled_signal / np.sqrt(other.scaled_noise))


def bias(one: Sums, direction: Sums) -> np.ndarray:
    """The share of the expected gradient's squared length that does not lie along the direction, [R].

    nan where one of the two lengths is not positive.
    """
    length = np.where(one.mean > 0, one.mean, np.nan) * np.where(direction.signal > 0, direction.signal, np.nan)
    return 1 - one.signal**2 / length


def interval(value_R: np.ndarray) -> tuple[float, float, float]:
    """(estimate, low, high): the sample's value and its interval; a limit is nan where it lies among undefined values.

    Undefined resamples count on both sides.
    """
    drawn = value_R[1:]
    tail, undefined = (1 - CONFIDENCE) / 2, ~np.isfinite(drawn)
    low, high = np.where(undefined, -np.inf, drawn), np.where(undefined, np.inf, drawn)
    limits = np.quantile(low, tail, method="lower"), np.quantile(high, 1 - tail, method="higher")
    return float(value_R[0]), *(float(limit) if np.isfinite(limit) else np.nan for limit in limits)


def measurable(cosine_R: np.ndarray) -> bool:
    """Whether the interval of a cosine lies above 0."""
    return bool(interval(cosine_R)[1] > 0)
