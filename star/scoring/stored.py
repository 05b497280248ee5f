"""Judge stored detections again: GenEval's result lines (`metadata`, `details`, optionally `colors`) in, our score lines out.

A line's `metadata` and `details` are JSON strings, `details` maps a class to boxes [x1, y1, x2, y2, score]; `colors`, a JSON
string too, maps a class to the colours of those boxes in their order. GenEval's own evaluator stores no colours.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from star import files
from star.errors import InputError
from star.prompts import schema
from star.prompts.record import json_lines
from star.prompts.text import read_text
from star.scoring import rules
from star.scoring.detection import Detection
from star.scoring.summary import summary
from star.worlds.door import every_class

_NAME = re.compile(r"(?:.*[/\\])?(\d+)[/\\]samples[/\\](\d+)\.\w+", re.ASCII)
_NO_LINE = "not a result line of GenEval (filename; metadata and details as JSON strings)"
_MISSING = "no such file; it is what GenEval's evaluate_images.py or `star score` wrote"


def rescore(file: Path, out: Path) -> dict:
    """Judge every line of `file` and write `out` (JSON lines), atomically; returns folder's `summary`.

    The fingerprint names the scorer that the lines name (ours do), else the file's hash, so that detections of different
    detectors never share a column. Raises InputError, naming file and line, when a line is not GenEval's, when the verdict
    needs a colour that is not stored or a class that nothing finds, and when lines come from several runs: of several
    scorers, twice of one picture, or of two prompts under one id.
    """
    rows = list(json_lines(file, read_text(file, _MISSING), "JSON lines"))
    if not rows:
        raise InputError(f"{file}: no detections in it; write it again")
    origins = {row.get("scorer") if isinstance(row, dict) else None for _, row in rows}
    if len(origins) > 1:
        raise InputError(f"{file}: lines of different scorers ({', '.join(sorted(map(repr, origins)))}); give one file each")
    origin = origins.pop() or f"@{files.sha256(file)[:12]}"
    scorer = f"geneval detections ({origin}) numpy-{np.__version__} {rules.RULES}"
    lines = [_judged(row, where, scorer) for where, row in rows]
    _check_classes(rows, lines)
    _check_one_run([where for where, _ in rows], lines)
    files.write_text(out, "".join(json.dumps(line) + "\n" for line in lines))
    return summary("geneval", lines)


def _judged(row: object, where: str, scorer: str) -> dict:
    metadata = _metadata(row, where)
    try:
        name, details = row["filename"], json.loads(row["details"])
        colors = json.loads(row.get("colors") or "{}")
        prompt, prompt_id = metadata["prompt"], row.get("prompt_id")
        rules.check(prompt, metadata)
        place = _NAME.fullmatch(name)
        found, named = _found(details, colors, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: {_NO_LINE}: {error!r}") from None
    if place is None:
        raise InputError(f"{where}: filename {name!r} is not .../00000/samples/0000.png, so its prompt cannot be told")
    for detection in rules.color_candidates(found, metadata):
        if named.get(id(detection)) is None:
            raise InputError(
                f"{where}: {prompt!r} needs the colour of a {detection.cls}; add `colors` (class -> colours in the order of "
                f"details) to the line, or score the images themselves"
            )
    return {
        "filename": name,
        "tag": metadata["tag"],
        "prompt": prompt,
        **rules.verdict(found, named, prompt, metadata).as_dict(),
        "prompt_id": prompt_id if isinstance(prompt_id, str) else f"geneval-{place[1]}",
        "sample": int(place[2]),
        "scorer": scorer,
        "task": "geneval",
    }


def _check_classes(rows: list[tuple[str, dict]], lines: list[dict]) -> None:
    """Refuse a prompt with a class that no detector has and that occurs nowhere in the file: it would always be absent."""
    classes = every_class().union(*(json.loads(row["details"]) for _, row in rows))
    for (where, _), line in zip(rows, lines, strict=True):
        try:
            remedy = "correct the name, or score the images themselves"
            rules.check_classes(line["prompt"], json.loads(line["metadata"]), classes, remedy)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _check_one_run(places: list[str], lines: list[dict]) -> None:
    """Refuse lines of runs that were joined: a picture twice, an id of two prompts, a number twice among an id's pictures."""
    each = "give one file for each run"
    by_name: dict[str, int] = {}
    by_id: dict[str, int] = {}
    by_picture: dict[tuple[str, int], int] = {}
    for place, (where, line) in enumerate(zip(places, lines, strict=True)):
        name, prompt, prompt_id, number = (line[key] for key in ("filename", "prompt", "prompt_id", "sample"))
        if (first := by_name.setdefault(name, place)) != place:
            raise InputError(f"{where}: {name} was already in {places[first]}; {each}")
        first = by_id.setdefault(prompt_id, place)
        if (other := lines[first]["prompt"]) != prompt:
            raise InputError(
                f"{where}: {prompt_id} is {prompt!r} here and {other!r} in {places[first]}, of another run; {each}"
            )
        if (first := by_picture.setdefault((prompt_id, number), place)) != place:
            raise InputError(f"{where}: picture {number} of {prompt_id} is in {places[first]} too, from another folder; {each}")


def _metadata(row: object, where: str) -> dict:
    try:
        value = json.loads(row["metadata"])
        value["prompt"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {_NO_LINE}: {error!r}") from None
    return schema.metadata(value, where)


def _found(details: dict, colors: dict, metadata: dict) -> tuple[rules.Found, dict[int, str]]:
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
    return rules.select(detections[::-1], metadata["tag"]), named  # equal scores stay in the order of details
