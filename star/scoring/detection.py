"""What a detector sees and is: the types that rules, detectors and golden pictures share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # GenEval's, on a detection's score
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RENAMED = {  # labels of COCO, and of its older spelling, that GenEval calls otherwise
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


class Detected(Protocol):
    """One detection: class, box (x1, y1, x2, y2) in pixels, score 0..1, mask bool [H, W]."""

    cls: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray


class Detection(NamedTuple):
    """A detection of a real detector; `mask` is None where only boxes were stored."""

    cls: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None


class Golden(NamedTuple):
    """A picture, uint8 [H, W, 3], GenEval's metadata for it, and the verdict that is known to be right."""

    name: str
    image: np.ndarray
    metadata: dict
    correct: bool = True


class Detector(NamedTuple):
    """What sees: the objects of pictures, the colours of (picture, object) pairs, and how to know that both work."""

    detect: Callable[[Sequence[np.ndarray]], list[Sequence[Detected]]]
    colors_of: Callable[[Sequence[tuple[np.ndarray, Detected]]], list[str]]
    fingerprint: str
    golden: list[Golden]
    classes: frozenset[str]  # what `detect` can find
