"""Collapse guards: what a rising reward may hide, measured on the pictures of one checkpoint. Ours.

- `diversity`: mean distance between two pictures of a prompt, averaged over prompts; None where a prompt has one picture.
  Distance is 1 - cosine of the PickScore model's image features, or, with scorers.diversity `pixels`, the root mean square
  difference of 32 x 32 thumbnails (0..1).
- `edge_density`: share of pixels where luminance (0..1) changes by more than 0.1 a pixel, averaged over pictures.
- `color_entropy`: entropy of a picture's colours in 64 bins (4 levels a channel), bits: 0 for one colour, at most 6.
- `cross`: scores by the scorers of the other tasks, over the pictures whose prompts have what those need: pickscore takes any
  prompt, geneval needs objects in its metadata, ocr a quoted target.

All are to be compared between checkpoints on the same prompts, resolution and picture numbers, and mean nothing alone.

Shape suffixes: P pictures of one prompt, D features, H W pixels.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from star.scoring import pictures, summary
from star.scoring.samples import Sample
from star.scoring.scorer import SUITE, Scorer, can_score

_EDGE, _THUMBNAIL, _LEVELS = 0.1, 32, 4
_BATCH = 48
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def edge_density(image_HW3: np.ndarray) -> float:
    """Share of pixels, but for the last row and column, whose step to the right and down is longer than 0.1; uint8 in."""
    light_HW = image_HW3.astype(np.float32) @ _LUMINANCE / 255
    right, down = light_HW[:-1, 1:] - light_HW[:-1, :-1], light_HW[1:, :-1] - light_HW[:-1, :-1]
    return float((np.hypot(right, down) > _EDGE).mean()) if right.size else 0.0


def color_entropy(image_HW3: np.ndarray) -> float:
    """Entropy in bits of the colours of a uint8 picture, 4 levels a channel."""
    levels = image_HW3.reshape(-1, 3).astype(int) * _LEVELS // 256
    share = np.bincount(levels @ [_LEVELS**2, _LEVELS, 1], minlength=_LEVELS**3) / len(levels)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() + 0.0)


def cosine_distance(features_PD: np.ndarray) -> float | None:
    """Mean of 1 - cosine over all pairs of unit features; None for a single one."""
    n = len(features_PD)
    if n < 2:
        return None
    total = float(np.square(features_PD.sum(0)).sum())  # the sum of all n x n cosines
    return max(0.0, 1 - (total - n) / (n * (n - 1)))


def pixel_distance(thumbnails_PD: np.ndarray) -> float | None:
    """Mean over all pairs of the root mean square difference; None for a single one."""
    n = len(thumbnails_PD)
    pairs = [np.sqrt(np.square(thumbnails_PD[i + 1 :] - thumbnails_PD[i]).mean(1)).sum() for i in range(n - 1)]
    return float(sum(pairs) / (n * (n - 1) / 2)) if pairs else None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture's 32 x 32 pixels in a row, 0..1."""
    small = Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def measure(name: str, found: Sequence[Sample], *, diversity: str, scorer_of: Callable[[str], Scorer]) -> dict:
    """The guards of some pictures, which the scorer `name` scores.

    `diversity` is the setting of that name; `scorer_of` gives the scorers that look, by name.

    Keys: task, images, prompts, features (what made them), the three GUARDS, and cross: {scorer: {mean, images, scorer}} of
    the others. Raises InputError for missing pictures or weights, as star.scoring.folder.score.
    """
    crossing = {other: scorer_of(other) for other in _others(name, found)}
    for other, scorer in crossing.items():
        scorer.check([sample.record for sample in found if can_score(other, sample.record)])
    model = None
    if diversity != "pixels":
        model = scorer_of(diversity)
    features, edges, entropies, lines = [], [], [], defaultdict(list)
    for start in range(0, len(found), _BATCH):
        batch = found[start : start + _BATCH]
        read = [pictures.read(sample.path) for sample in batch]
        edges += map(edge_density, read)
        entropies += map(color_entropy, read)
        embedded = model.embed(read) if model else None
        features += [thumbnail(image) for image in read] if model is None else list(embedded.cpu().numpy())
        for other, scorer in crossing.items():
            rows = [i for i, sample in enumerate(batch) if can_score(other, sample.record)]
            records = [batch[i].record for i in rows]
            scores = model.compare(embedded[rows], records) if scorer is model else scorer([read[i] for i in rows], records)
            lines[other] += [{"tag": batch[i].record.tag, "score": one.score} for i, one in zip(rows, scores, strict=True)]
    return {
        "task": name,
        "images": len(found),
        "prompts": len({sample.record.id for sample in found}),
        "features": model.fingerprint if model else f"pixels {_THUMBNAIL}x{_THUMBNAIL}",
        "diversity": _diversity(found, features, cosine_distance if model else pixel_distance),
        "edge_density": float(np.mean(edges)),
        "color_entropy": float(np.mean(entropies)),
        "cross": {other: _mean(scorer, lines[other]) for other, scorer in crossing.items()},
    }


def _others(name: str, found: list[Sample]) -> list[str]:
    """The other scorers that can score some of the pictures."""
    return [other for other in SUITE if other != name and any(can_score(other, sample.record) for sample in found)]


def _mean(scorer: Scorer, lines: list[dict]) -> dict:
    return {"mean": summary.mean(lines, scorer.tags), "images": len(lines), "scorer": scorer.fingerprint}


def _diversity(found: Sequence[Sample], features: list[np.ndarray], distance: object) -> float | None:
    of_prompt = defaultdict(list)
    for sample, feature in zip(found, features, strict=True):
        of_prompt[sample.record.id].append(feature)
    distances = [distance(np.stack(group)) for group in of_prompt.values()]
    return None if None in distances else float(np.mean(distances))
