"""Judge stored detections again: GenEval's result lines (`metadata`, `details`, optionally `colors`) in, our score lines out.

A line's `metadata` and `details` are JSON strings, `details` maps a class to boxes [x1, y1, x2, y2, score]; `colors`, a JSON
string too, maps a class to the colours of those boxes in their order. GenEval's own evaluator stores no colours.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np

from star.errors import InputError
from star.prompts.record import Prompt
from star.scoring.folder import summary
from star.scoring.geneval import RULES, Detection, Found, asked_colors, check, select, verdict

_NAME = re.compile(r"(?:.*/)?(\d+)/samples/(\d+)\.\w+")


def rescore(file: Path, out: Path) -> dict:
    """Judge every line of `file` and write `out` (JSON lines), atomically; returns folder's `summary`.

    The fingerprint names the scorer that the lines name (ours do), else the file's hash, so that detections of different
    detectors never share a column. Raises InputError, naming file and line, when a line is not GenEval's, when an image is
    twice in the file, when lines name several scorers, or when the verdict needs a colour that is not stored.
    """
    try:
        content = file.read_bytes()
        rows = [json.loads(line) for line in content.decode().splitlines()]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; it is what GenEval's evaluate_images.py or `star score` wrote") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON lines ({error}); write it again") from None
    if not rows:
        raise InputError(f"{file}: no detections in it; write it again")
    origins = {row.get("scorer") if isinstance(row, dict) else None for row in rows}
    if len(origins) > 1:
        raise InputError(f"{file}: lines of different scorers ({', '.join(sorted(map(repr, origins)))}); give one file each")
    origin = origins.pop() or f"@{hashlib.sha256(content).hexdigest()[:12]}"
    scorer = f"geneval detections ({origin}) numpy-{np.__version__} {RULES}"
    lines = [_judged(row, f"{file}:{number}", scorer) for number, row in enumerate(rows, 1)]
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if (first := seen.setdefault(line["filename"], number)) != number:
            raise InputError(f"{file}:{number}: {line['filename']} was already in line {first}; give one file for each run")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unfinished.replace(out)
    return summary("geneval", lines)


def _judged(row: object, where: str, scorer: str) -> dict:
    try:
        name, metadata, details = row["filename"], json.loads(row["metadata"]), json.loads(row["details"])
        colors = json.loads(row.get("colors") or "{}")
        prompt = metadata["prompt"]
        check([Prompt(name, "geneval", "stored", prompt, metadata=metadata)])
        place = _NAME.fullmatch(name)
        found, named = _found(details, colors, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not a result line of GenEval (filename; metadata and details as JSON strings): {error!r}"
        ) from None
    if place is None:
        raise InputError(f"{where}: filename {name!r} is not .../00000/samples/0000.png, so its prompt cannot be told")
    for detection in asked_colors(found, metadata):
        if named.get(id(detection)) is None:
            raise InputError(
                f"{where}: {prompt!r} needs the colour of a {detection.cls}; add `colors` (class -> colours in the order of "
                f"details) to the line, or score the images themselves"
            )
    return {
        "filename": name,
        "tag": metadata["tag"],
        "prompt": prompt,
        **verdict(found, named, prompt, metadata),
        "prompt_id": row.get("prompt_id", f"geneval-{place[1]}"),
        "sample": int(place[2]),
        "scorer": scorer,
        "task": "geneval",
    }


def _found(details: dict, colors: dict, metadata: dict) -> tuple[Found, dict[int, str]]:
    """The detections that count, by class and best first, and the stored colours by id(detection)."""
    detections, named = [], {}
    for cls, boxes in details.items():
        stored = colors.get(cls, [None] * len(boxes))
        if len(stored) != len(boxes):
            raise InputError(f"`colors` has {len(stored)} of {cls}, `details` has {len(boxes)}; one for each box, in order")
        for (*box, score), color in zip(boxes, stored, strict=True):
            if len(box) != 4 or not all(map(math.isfinite, (*box, score))):
                raise InputError(f"`details` of {cls} has {[*box, score]}, not five finite numbers x1, y1, x2, y2, score")
            detection = Detection(cls, tuple(map(float, box)), float(score), None)
            detections.append(detection)
            named[id(detection)] = color
    return select(detections, metadata["tag"]), named
