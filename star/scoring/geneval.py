"""GenEval (arXiv 2310.11513): the official rules on detections, and a soft training reward.

A backend detects objects and names colours; the rules below are pure functions of what it found. `Found` maps a class to its
detections, best first, as the official evaluator orders them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.prompts.record import Prompt
from star.scoring.golden import Golden

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
OFFICIAL_KEYS = ("tag", "include", "exclude", "prompt")
FAILURES = ("absent", "surplus", "color", "position")
RULES = f"threshold={THRESHOLD}/{COUNTING_THRESHOLD} max={MAX_OBJECTS} position={POSITION_THRESHOLD}"


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


class Backend(NamedTuple):
    """What sees: the objects of pictures, the colours of (picture, object) pairs, and how to know that both work."""

    detect: Callable[[Sequence[np.ndarray]], list[Sequence[Detected]]]
    colors_of: Callable[[Sequence[tuple[np.ndarray, Detected]]], list[str]]
    fingerprint: str
    golden: list[Golden]
    classes: frozenset[str] | None = None  # what `detect` can find; None: whatever the prompts name


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


def failure(reasons: str) -> str:
    """The first of FAILURES among the reasons that `judge` gives (ours); "" for none.

    `absent`: fewer objects than asked for, `surplus`: more, `color` and `position`: as many, but otherwise wrong.
    """
    if re.search(r">=\d+, found \d+$", reasons, re.MULTILINE):
        return "absent"
    if re.search(r"<\d+, found \d+$", reasons, re.MULTILINE):
        return "surplus"
    if re.search(r">=\d+, found \d+ ", reasons):
        return "color"
    return "position" if reasons else ""


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


def asked_colors(found: Found, metadata: dict) -> list[Detected]:
    """The detections whose colour `judge` and `soft_reward` look at: the best `count` of a coloured class that has so many."""
    items = [item for item in metadata["include"] if "color" in item]
    groups = [found.get(item["class"], [])[: item["count"]] for item in items]
    return [d for item, group in zip(items, groups, strict=True) if len(group) == item["count"] for d in group]


def verdict(found: Found, colors: dict[int, str], prompt: str, metadata: dict) -> dict:
    """A score line's part of the verdict: score, reward, correct, reason, and metadata, details, colors as JSON strings.

    `colors` maps id(detection) to a colour for all of `asked_colors`. The line's own `colors` (class -> colours in the order
    of details, null where none was asked) is there only for prompts that ask for a colour; it lets `star score --detections`
    judge the line again.
    """
    correct, reason = judge(found, lambda d: colors[id(d)], metadata)
    official = {"prompt": prompt, **metadata}
    line = {
        "score": float(correct),
        "reward": soft_reward(found, lambda d: colors[id(d)], metadata),
        "correct": correct,
        "reason": reason,
        "metadata": json.dumps({key: official[key] for key in OFFICIAL_KEYS if key in official}),
        "details": json.dumps({cls: [[*map(float, d.box), d.score] for d in objects] for cls, objects in found.items()}),
    }
    if coloured := {item["class"] for item in metadata["include"] if "color" in item}:
        named = {cls: [colors.get(id(d)) for d in objects] for cls, objects in found.items() if cls in coloured}
        line["colors"] = json.dumps(named)
    return line


def check(records: Sequence[Prompt]) -> None:
    """Raise InputError, naming the prompt, when a record's metadata cannot be judged or asks for what no rule can grant."""
    for record in records:
        if wrong := _wrong(record.metadata):
            raise InputError(f"prompt {record.text!r}: its metadata {wrong}")


def _wrong(metadata: dict) -> str | None:
    include = metadata.get("include") or [{}]
    items = [*include, *metadata.get("exclude", [])]
    known = (*TAGS, "free")  # "free": the miniature's preference captions, which name objects too
    if metadata.get("tag") not in known or any("class" not in item or item.get("count", 0) < 1 for item in items):
        return f"needs GenEval's `tag` ({', '.join(TAGS)}) and `include` (class, count) to be scored"
    for number, item in enumerate(include):
        if "color" in item and item["color"] not in COLORS:
            return f"asks for the colour {item['color']!r}, which no object can have; GenEval's are {', '.join(COLORS)}"
        if "position" in item:
            relation, target = item["position"]
            if relation not in RELATIONS or target not in range(number):
                return f"asks for the position {item['position']}; give {', '.join(RELATIONS)} and an earlier item's number"
    return None


def _miniature() -> Backend:
    """The analytic detector of the miniature world; golden is one drawn picture a tag."""
    from star.worlds.miniature import detector, scenes
    from star.worlds.miniature.captions import descriptions

    rng, golden = np.random.default_rng(0), []
    for tag in TAGS:
        description = next(descriptions(tag))
        golden.append(Golden(tag, scenes.render(scenes.compose(description, rng)), description))
    sources = b"".join(Path(module.__file__).read_bytes() for module in (detector, scenes))
    return Backend(
        lambda images: [detector.detect(image) for image in images],
        lambda pairs: [detector.color_of(image, detection) for image, detection in pairs],
        f"miniature@{hashlib.sha256(sources).hexdigest()[:12]}",
        golden,
    )


def _backend(scorers: Scorers) -> Backend:
    if scorers.geneval.detector == "miniature":
        return _miniature()
    from star.scoring import golden
    from star.scoring.colors import ClipColors

    if scorers.geneval.detector == "mask2former":
        from star.scoring.mask2former import Mask2Former as Detector
    else:
        from star.scoring.mmdetection import MMDetector as Detector
    answers = golden.read(Path(scorers.geneval.golden)) if scorers.geneval.golden else golden.portrait()
    detector = Detector(scorers)
    colors = ClipColors(scorers)
    if not scorers.geneval.golden:
        golden.check_colors(colors)
    return Backend(detector.detect, colors, f"{detector.fingerprint} {colors.fingerprint}", answers, detector.classes)


class GenevalScorer:
    """GenEval with the detector of `scorers`: `score` is 1.0 or 0.0 by the official rules, `reward` the soft one.

    Raises InputError when weights are missing and ScorerFailed when the backend is wrong on a golden picture.
    """

    def __init__(self, scorers: Scorers) -> None:
        self._backend = _backend(scorers)
        self.fingerprint = f"geneval {self._backend.fingerprint} numpy-{np.__version__} {RULES}"
        self._guard()

    def _guard(self) -> None:
        """Score the golden pictures: a backend that has silently gone blind stops here."""
        golden = self._backend.golden
        records = [Prompt(g.name, "geneval", "golden", g.name, metadata=g.metadata) for g in golden]
        for g, line in zip(golden, self([g.image for g in golden], records), strict=True):
            if line["correct"] != g.correct:
                raise ScorerFailed(
                    f"the detector is wrong on a golden picture ({g.name}): judged {line['correct']}, "
                    f"found {line['details']} {' '.join(line['reason'].split())} ({self._backend.fingerprint})"
                )

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a record's metadata cannot be judged, or names a class that the detector does not know."""
        check(records)
        known = self._backend.classes
        for record in records if known is not None else ():
            items = record.metadata["include"] + record.metadata.get("exclude", [])
            for unknown in (item["class"] for item in items if item["class"] not in known):
                raise InputError(
                    f"prompt {record.text!r}: the detector has no class {unknown!r}, so it could never be found; "
                    f"use a GenEval class, or a scorers.geneval.model with such a label"
                )

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[dict]:
        """Judge uint8 [H, W, 3] pictures: score, reward, and the official correct, reason, metadata, details."""
        self.check(records)
        metadata = [record.metadata for record in records]
        found = [select(seen, m["tag"]) for seen, m in zip(self._backend.detect(images), metadata, strict=True)]
        asked = [(images[i], d) for i, m in enumerate(metadata) for d in asked_colors(found[i], m)]
        colors = {id(d): color for (_, d), color in zip(asked, self._backend.colors_of(asked), strict=True)}
        return [verdict(f, colors, r.text, m) for f, r, m in zip(found, records, metadata, strict=True)]
