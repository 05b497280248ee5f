"""What says that a training goes wrong before its numbers end: no advantage any more, and pictures that grow alike. Ours."""

from collections.abc import Iterable, Sequence

import numpy as np

from star.scoring.guards import color_entropy, edge_density, pixel_distance, thumbnail

# Of its value for the untrained model. In 180 recorded runs (docs/healthy.md) the first two never fell below 0.92 of it.
FALLEN = {"edge_density": 0.85, "color_entropy": 0.85, "diversity": 0.6}


def without_advantage(rows: Sequence[dict]) -> int:
    """How many of the last epochs in a row gave no image an advantage."""
    count = 0
    for row in reversed(rows):
        if row["zero_advantage_share"] < 1:
            break
        count += 1
    return count


def without_better(measured: Sequence[dict]) -> int:
    """How many of the last times pictures were drawn their reward was not above all before."""
    rewards = [row["reward"] for row in measured]
    return len(rewards) - 1 - rewards.index(max(rewards)) if rewards else 0


def measure(pictures_of_prompt: Iterable[Sequence[np.ndarray]]) -> dict[str, float]:
    """The collapse guards that need no model, of uint8 pictures [H, W, 3], at least two of every prompt."""
    groups = list(pictures_of_prompt)
    pictures = [picture for group in groups for picture in group]
    return {
        "edge_density": float(np.mean([edge_density(picture) for picture in pictures])),
        "color_entropy": float(np.mean([color_entropy(picture) for picture in pictures])),
        "diversity": float(np.mean([pixel_distance(np.stack([thumbnail(picture) for picture in g])) for g in groups])),
    }


def fallen(first: dict[str, float], now: dict[str, float]) -> list[str]:
    """The guards that are so low, beside those of the untrained model, that pictures may be collapsing."""
    return [guard for guard, share in FALLEN.items() if now[guard] < share * first[guard]]
