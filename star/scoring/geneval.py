"""GenEval (arXiv 2310.11513): the official rules on detections, and a soft training reward.

A backend detects objects and names colours; the rules below are pure functions of what it found. `Found` maps a class to its
detections, best first, as the official evaluator orders them.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from star.errors import InputError

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OFFICIAL_KEYS = ("tag", "include", "exclude", "prompt")


class Detected(Protocol):
    """One detection: class, box (x1, y1, x2, y2) in pixels, score 0..1, mask bool [H, W]."""

    cls: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray


class Backend(NamedTuple):
    """What sees: the objects of a picture, the colour of one of them, and its fingerprint."""

    detect: Callable[[np.ndarray], Sequence[Detected]]
    color_of: Callable[[np.ndarray, Detected], str]
    fingerprint: str


Found = dict[str, list[Detected]]


def select(detections: Sequence[Detected], tag: str) -> Found:
    """What counts as found: above the tag's threshold, best first, at most 16 a class; classes in order of first detection."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: Found = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold and len(found.setdefault(detection.cls, [])) < MAX_OBJECTS:
            found[detection.cls].append(detection)
    return found


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """How box `a` lies to box `b` (x1, y1, x2, y2): a subset of left of, right of, above, below; up to two hold at once."""
    corners = np.array([a, b], float).reshape(2, 2, 2)
    sides = abs(corners[:, 1] - corners[:, 0]).sum(0)
    offset = corners[0].mean(0) - corners[1].mean(0)
    revised = np.maximum(abs(offset) - POSITION_THRESHOLD * sides, 0) * np.sign(offset)
    if (abs(revised) < 1e-3).all():
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}


def judge(found: Found, color: Callable[[Detected], str], metadata: dict) -> tuple[bool, str]:
    """The official verdict on one picture: (correct, reasons against it, one a line)."""
    reasons: list[str] = []
    groups: list[list[Detected] | None] = []
    for item in metadata.get("include", []):
        cls, count = item["class"], item["count"]
        objects = found.get(cls, [])[:count]
        against = []
        if len(objects) < count:
            against.append(f"expected {cls}>={count}, found {len(objects)}")
        elif "color" in item:
            colors = [color(o) for o in objects]
            if colors.count(item["color"]) < count:
                seen = ", ".join(f"{colors.count(c)} {c}" for c in sorted(set(colors)))
                against.append(f"expected {item['color']} {cls}>={count}, found {seen}")
        if not against and "position" in item:
            relation, target = item["position"]
            if groups[target] is None:
                against.append(f"no target for {cls} to be {relation}")
            for o, t in ((o, t) for o in objects for t in groups[target] or []):
                true = relations(o.box, t.box)
                if relation not in true:
                    against.append(f"expected {cls} {relation} target, found {' and '.join(sorted(true))} target")
                    break
        reasons += against
        groups.append(None if against else objects)
    for item in metadata.get("exclude", []):
        number = len(found.get(item["class"], []))
        if number >= item["count"]:
            reasons.append(f"expected {item['class']}<{item['count']}, found {number}")
    return not reasons, "\n".join(reasons)


def soft_reward(found: Found, color: Callable[[Detected], str], metadata: dict) -> float:
    """The training reward, 0..1: the mean of its parts.

    Every include item has a count part, 1 - |n - found| / n clipped to 0..1; a colour part, the share of its n objects with the
    colour; a position part, the share of (object, target) pairs in the relation. Colour and position parts are 0 where a
    count is wrong. Source: Flow-GRPO's reward server (arXiv 2505.05470) without its two bugs: its count parts can be negative
    and its failed relations are credited.
    """
    parts: list[float] = []
    groups: list[list[Detected] | None] = []
    for item in metadata["include"]:
        n, objects = item["count"], found.get(item["class"], [])
        exact = len(objects) == n
        parts.append(max(0.0, 1 - abs(n - len(objects)) / n))
        if "color" in item:
            parts.append(sum(color(o) == item["color"] for o in objects) / n if exact else 0.0)
        if "position" in item:
            relation, target = item["position"]
            pairs = [(o, t) for o in objects for t in groups[target] or []] if exact else []
            holds = [relation in relations(o.box, t.box) for o, t in pairs]
            parts.append(sum(holds) / len(holds) if holds else 0.0)
        groups.append(objects if exact else None)
    return float(np.mean(parts))


def overall(tag_means: dict[str, float]) -> float:
    """GenEval's overall score: the unweighted mean of the tag means that are present."""
    return float(np.mean(list(tag_means.values())))


def miniature_backend() -> Backend:
    """The analytic detector of the miniature world."""
    from star.miniature import detector, scenes

    sources = b"".join(Path(module.__file__).read_bytes() for module in (detector, scenes))
    return Backend(detector.detect, detector.color_of, f"miniature@{hashlib.sha256(sources).hexdigest()[:12]}")


def _guard(backend: Backend) -> None:
    """Score one golden picture a tag: a backend that has silently gone blind stops here."""
    from star.miniature.captions import descriptions
    from star.miniature.scenes import compose, render

    rng = np.random.default_rng(0)
    for tag in TAGS:
        description = next(descriptions(tag))
        picture = render(compose(description, rng))
        found = select(backend.detect(picture), tag)
        correct, reason = judge(found, lambda d, p=picture: backend.color_of(p, d), description)
        if not correct:
            raise RuntimeError(f"the detector {backend.fingerprint} fails on a golden picture ({tag}): {reason}")


class GenevalScorer:
    """GenEval with a named detector: `score` is 1.0 or 0.0 by the official rules, `reward` the soft one."""

    def __init__(self, detector: str) -> None:
        if detector != "miniature":
            raise InputError(
                f"scorers.detector: {detector} is not available in this version, only `miniature`, which sees miniature scenes"
            )
        self._backend = miniature_backend()
        _guard(self._backend)
        rules = f"threshold={THRESHOLD}/{COUNTING_THRESHOLD} max={MAX_OBJECTS} position={POSITION_THRESHOLD}"
        self.fingerprint = f"geneval {self._backend.fingerprint} numpy-{np.__version__} {rules}"

    def check(self, records: Sequence[dict]) -> None:
        """Raise InputError when a record's metadata has no `include` list of classes and counts."""
        for record in records:
            items = record["metadata"].get("include") or [{}]
            if "tag" not in record["metadata"] or any("class" not in i or i.get("count", 0) < 1 for i in items):
                raise InputError(
                    f"prompt {record['prompt']!r}: its metadata needs GenEval's `tag` and `include` (class, count) to be scored"
                )

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[dict]) -> list[dict]:
        """Judge uint8 [H, W, 3] pictures: score, reward, and the official correct, reason, metadata, details."""
        self.check(records)
        return [self._one(image, record) for image, record in zip(images, records, strict=True)]

    def _one(self, image: np.ndarray, record: dict) -> dict:
        metadata = record["metadata"]
        found = select(self._backend.detect(image), metadata["tag"])

        def color(detection: Detected) -> str:
            return self._backend.color_of(image, detection)

        correct, reason = judge(found, color, metadata)
        official = {"prompt": record["prompt"], **metadata}
        details = {cls: [[*map(float, d.box), d.score] for d in objects] for cls, objects in found.items()}
        return {
            "score": float(correct),
            "reward": soft_reward(found, color, metadata),
            "correct": correct,
            "reason": reason,
            "metadata": json.dumps({key: official[key] for key in OFFICIAL_KEYS if key in official}),
            "details": json.dumps(details),
        }
