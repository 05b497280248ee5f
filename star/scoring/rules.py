"""GenEval's rules (arXiv 2310.11513): pure functions of what a detector found, and a soft training reward.

`Found` maps a class to its detections, best first, as the official evaluator orders them.
"""

import json
import re
from collections.abc import Callable, Sequence

import numpy as np

from star.errors import InputError
from star.scoring.detection import COLORS, COUNTING_THRESHOLD, THRESHOLD, Detected
from star.scoring.score import Score

MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
KNOWN_TAGS = (*TAGS, "free")  # free: captions of no kind of the suite, whose metadata names objects all the same
RELATIONS = ("left of", "right of", "above", "below")
OFFICIAL_KEYS = ("tag", "include", "exclude", "prompt")
FAILURES = ("absent", "surplus", "color", "position")
RULES = f"threshold={THRESHOLD}/{COUNTING_THRESHOLD} max={MAX_OBJECTS} position={POSITION_THRESHOLD}"

Found = dict[str, list[Detected]]


def select(detections: Sequence[Detected], tag: str) -> Found:
    """What counts as found: above the tag's threshold, best first, at most 16 a class; classes in order of first detection.

    Equal scores are in reverse order of detection, as the official evaluator's argsort(...)[::-1] has them.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: Found = {}
    for detection in sorted(detections, key=lambda d: d.score)[::-1]:
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


def color_candidates(found: Found, metadata: dict) -> list[Detected]:
    """The detections whose colour `judge` and `soft_reward` look at: the best `count` of a coloured class that has so many."""
    items = [item for item in metadata["include"] if "color" in item]
    groups = [found.get(item["class"], [])[: item["count"]] for item in items]
    return [d for item, group in zip(items, groups, strict=True) if len(group) == item["count"] for d in group]


def verdict(found: Found, colors: dict[int, str], prompt: str, metadata: dict) -> Score:
    """The official verdict and the soft reward, resting on correct, reason, and metadata, details, colors as JSON strings.

    `colors` maps id(detection) to a colour for all of `color_candidates`. The line's own `colors` (class -> colours in the
    order of details, null where none was asked) is there only for prompts that ask for a colour; it lets
    `star score --detections` judge the line again.
    """
    correct, reason = judge(found, lambda d: colors[id(d)], metadata)
    official = {"prompt": prompt, **metadata}
    findings = {
        "correct": correct,
        "reason": reason,
        "metadata": json.dumps({key: official[key] for key in OFFICIAL_KEYS if key in official}),
        "details": json.dumps({cls: [[*map(float, d.box), d.score] for d in objects] for cls, objects in found.items()}),
    }
    if coloured := {item["class"] for item in metadata["include"] if "color" in item}:
        named = {cls: [colors.get(id(d)) for d in objects] for cls, objects in found.items() if cls in coloured}
        findings["colors"] = json.dumps(named)
    return Score(float(correct), soft_reward(found, lambda d: colors[id(d)], metadata), findings)


def check(prompt: str, metadata: dict) -> None:
    """Raise InputError, naming the prompt, when its metadata cannot be judged or asks for what no rule can grant."""
    if wrong := _wrong(metadata):
        raise InputError(f"prompt {prompt!r}: its metadata {wrong}")


def check_classes(prompt: str, metadata: dict, classes: frozenset[str], remedy: str) -> None:
    """Raise InputError, naming prompt and class, when checked metadata names a class that is not among `classes`."""
    for item in metadata["include"] + metadata.get("exclude", []):
        if item["class"] not in classes:
            why = f"there is no class {item['class']!r} to detect, so it could never be found"
            raise InputError(f"prompt {prompt!r}: {why}; {remedy}")


def _wrong(metadata: dict) -> str | None:
    include, exclude = metadata.get("include"), metadata.get("exclude", [])
    items = [*include, *exclude] if isinstance(include, list) and isinstance(exclude, list) else []
    if metadata.get("tag") not in KNOWN_TAGS or not include or not items or not all(map(_is_item, items)):
        return f"needs GenEval's `tag` ({', '.join(TAGS)}) and `include` (class, count) to be scored"
    for number, item in enumerate(include):
        if "color" in item and item["color"] not in COLORS:
            return f"asks for the colour {item['color']!r}, which no object can have; GenEval's are {', '.join(COLORS)}"
        if "position" in item and not _is_position(item["position"], number):
            return f"asks for the position {item['position']}; give {', '.join(RELATIONS)} and an earlier item's number"
    return None


def _is_item(item: object) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("class"), str):
        return False
    return type(item.get("count")) is int and item["count"] >= 1


def _is_position(position: object, number: int) -> bool:
    """Whether a position of include item `number` is a relation to an earlier one."""
    if not isinstance(position, (list, tuple)) or len(position) != 2:
        return False
    relation, target = position
    return relation in RELATIONS and type(target) is int and target in range(number)
