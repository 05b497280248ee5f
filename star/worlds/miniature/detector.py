"""An analytic detector for pictures of the miniature world: what Mask2Former is to GenEval's photographs.

Coloured pixels form components; a component is the shape whose template, stretched to its box, it overlaps best. The score
falls with that overlap and with how close the second best shape comes, so a blob or a damaged shape scores low, as a real
detector's would. It never fails on a bad picture; it finds little. Source: ours.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from star.worlds.miniature.scenes import COLORS, SHAPES, Object, Scene, masks

_GRID = 24  # templates and components are compared on this many points a side
_COVER = 0.45  # a pixel belongs to an object at this share of the palette colour's chroma
_SMALLEST = 40  # pixels; the smallest rendered object has about 200
_OVERLAP = (0.68, 0.84)  # overlaps that score 0 and 1
_TEMPERATURE = 0.025  # of the class probabilities, in overlap
_ASPECT = 0.8  # side ratios (shorter by longer) below this lower the overlap
_LONGEST = 36  # pixels a side; no rendered object has more than 28, and what is longer loses overlap in proportion
_NECK = 0.6  # two objects that touch are joined by a neck at most this wide, in widths of the wider
_SPLIT_BELOW = 0.5  # a component that scores less may be several objects that touch


@dataclass(frozen=True)
class Detection:
    """One object: class, box (x1, y1, x2, y2) in pixels (ends exclusive), score 0..1, mask bool [H, W]."""

    cls: str
    box: tuple[int, int, int, int]
    score: float
    mask: np.ndarray


def _sampled(mask: np.ndarray) -> np.ndarray:
    """A mask cut to its box and read at _GRID x _GRID points, bool [_GRID * _GRID]."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    steps = (np.arange(_GRID) + 0.5) / _GRID
    rows = ys[0] + (steps * (ys[-1] + 1 - ys[0])).astype(int)
    columns = xs[0] + (steps * (xs[-1] + 1 - xs[0])).astype(int)
    return mask[np.ix_(rows, columns)].ravel()


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """The shapes as `_sampled` sees them and the weight of every point, bool and float [shapes, _GRID * _GRID].

    A shape is drawn at many sizes and sub-pixel places; a point weighs more the more these drawings agree on it, so where the
    edge falls among pixels does not count.
    """
    rng = np.random.default_rng(0)
    shares = []
    for shape in SHAPES:
        drawn = []
        for r in np.linspace(9.5, 14, 60):
            x, y = 32 + rng.uniform(-0.5, 0.5, 2)
            drawn.append(_sampled(masks(Scene((Object(shape, "red", x, y, r),), 230))[0]))
        shares.append(np.mean(drawn, 0))
    share = np.stack(shares)
    return share > 0.5, abs(2 * share - 1)


@functools.cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Direction of every palette colour from grey, float [3, colours], and its chroma, float [colours]."""
    rgb = np.array(list(COLORS.values()), float)
    away = rgb - rgb.mean(1, keepdims=True)
    directions = (away / np.linalg.norm(away, axis=1, keepdims=True)).T
    return directions.astype(np.float32), np.ptp(rgb, axis=1).astype(np.float32)


def _classify(mask: np.ndarray) -> Detection:
    seen, (templates, weights) = _sampled(mask), _templates()
    overlap = (weights * (seen & templates)).sum(1) / (weights * (seen | templates)).sum(1)
    best = int(overlap.argmax())
    probability = 1 / np.exp((overlap - overlap[best]) / _TEMPERATURE).sum()
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x1, y1, x2, y2 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    sides = sorted((x2 - x1, y2 - y1))
    fit = overlap[best] * min(1.0, sides[0] / sides[1] / _ASPECT) * min(1.0, _LONGEST / sides[1])
    low, high = _OVERLAP
    score = float(probability * np.clip((fit - low) / (high - low), 0, 1))
    return Detection(SHAPES[best], (x1, y1, x2, y2), score, mask)


def _components(mask: np.ndarray) -> list[np.ndarray]:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())[1:]
    return [labels == k for k in np.flatnonzero(sizes >= _SMALLEST) + 1]


def _cuts(mask: np.ndarray) -> list[np.ndarray]:
    """The component cut in two at the neck in the middle half of its longer side; [] where there is no neck."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    axis = 0 if np.ptp(xs) >= np.ptp(ys) else 1
    along = xs if axis == 0 else ys
    quarter = math.ceil(len(along) / 4)
    middle = along[quarter : len(along) - quarter]
    if len(middle) == 0:
        return []
    width = mask.sum(axis)
    at = int(middle[width[middle].argmin()])
    if width[at] > _NECK * width.max():
        return []
    first = np.zeros_like(mask)
    if axis == 0:
        first[:, :at] = True
    else:
        first[:at] = True
    return _components(mask & first) + _components(mask & ~first)


def _explain(mask: np.ndarray, nearest: np.ndarray, depth: int = 2) -> list[Detection]:
    """One object, or several that touch where that explains the component better."""
    whole = _classify(mask)
    if whole.score >= _SPLIT_BELOW or depth == 0:
        return [whole]
    best, best_score = [whole], whole.score
    by_color = [part for k in np.unique(nearest[mask]) for part in _components(mask & (nearest == k))]
    for parts in (by_color, _cuts(mask)):
        if len(parts) > 1:
            found = [d for part in parts for d in _explain(part, nearest, depth - 1)]
            score = float(np.mean([d.score for d in found]))
            if score > best_score:
                best, best_score = found, score
    return best


def detect(image: np.ndarray) -> list[Detection]:
    """The objects of a picture, uint8 [H, W, 3], best score first. A picture without coloured areas gives an empty list."""
    rgb = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    directions, chroma = _palette()
    nearest = np.tensordot(directions.T, rgb - rgb.mean(0), 1).argmax(0)
    coloured = rgb.max(0) - rgb.min(0) > _COVER * chroma[nearest]
    found = [d for part in _components(coloured) for d in _explain(part, nearest)]
    return sorted(found, key=lambda d: -d.score)


def color_of(image: np.ndarray, detection: Detection) -> str:
    """The palette colour nearest to the mean hue of the detection's pixels in `image`, uint8 [H, W, 3]."""
    mean = image[detection.mask].astype(float).mean(0)
    return list(COLORS)[int(((mean - mean.mean()) @ _palette()[0]).argmax())]
