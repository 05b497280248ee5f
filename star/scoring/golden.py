"""Pictures with known answers, judged before anything is scored: a model that has silently gone blind stops there.

GenEval's stack is known to return low confidences on new GPUs without any error. Source of pictures and answers: ours.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from star.errors import InputError, ScorerFailed
from star.scoring import pictures, samples
from star.scoring.detection import Detection, Golden

_PERSON = {
    "tag": "counting",  # the strictest threshold
    "include": [{"class": "person", "count": 1}],
    "exclude": [{"class": "person", "count": 2}],
}
_DISCS = {"red": (220, 20, 20), "green": (20, 150, 30), "blue": (20, 40, 210), "yellow": (250, 225, 20)}


def portrait() -> list[Golden]:
    """The portrait that matplotlib carries (Grace Hopper; public domain), which shows one person, and an empty picture.

    Raises InputError when matplotlib was installed without its sample data.
    """
    blank = np.full((512, 512, 3), 128, np.uint8)
    return [
        Golden("one person", pictures.read(_portrait()), _PERSON),
        Golden("an empty picture", blank, _PERSON, correct=False),
    ]


def read(folder: Path) -> list[Golden]:
    """The pictures of a folder in GenEval's layout; metadata.jsonl may have `correct: false` for a known wrong picture.

    Raises InputError, naming the file, when there are none or the metadata is not GenEval's.
    """
    found = []
    for path in sorted(folder.glob("*/samples/*.png")):
        described = path.parents[1] / "metadata.jsonl"
        try:
            metadata = json.loads(described.read_text(encoding="utf-8"))
            answer = Golden(path.relative_to(folder).as_posix(), pictures.read(path), metadata, metadata.get("correct", True))
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"scorers.geneval.golden: {described} or {path} cannot be read: {error}") from None
        found.append(answer)
    if not found:
        raise InputError(f"scorers.geneval.golden: {folder} has no 00000/samples/0000.png; leave the key out for the built-in")
    return found


class Preference(NamedTuple):
    """A picture, uint8 [H, W, 3], a caption that fits it, and one that must score lower."""

    image: np.ndarray
    prompt: str
    worse: str


def preferences(model: str) -> list[Preference]:
    """What a preference model must know: the folder `golden` in its own one, else the `built_in`.

    `golden` is a flat folder of pictures with captions.jsonl (file, prompt, worse). Raises InputError, naming file and line,
    when it is not.
    """
    folder = Path(model, "golden")
    if not folder.is_dir():
        return built_in()
    captions = folder / "captions.jsonl"
    found = samples.find(folder, "pickscore", captions)
    for number, sample in enumerate(found, 1):
        if not isinstance(sample.record.metadata.get("worse"), str):
            raise InputError(f"{captions}:{number}: no `worse`, a caption that must score lower; write one or remove {folder}")
    return [Preference(pictures.read(s.path), s.record.text, s.record.metadata["worse"]) for s in found]


def built_in() -> list[Preference]:
    """The portrait and a drawn disc, each with the other's caption as the worse one.

    So no model that is blind to pictures or words gets both right.
    """
    portrait, disc = "a portrait of a woman in uniform", "a red circle on a white background"
    drawn = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(drawn).ellipse((96, 96, 415, 415), fill=_DISCS["red"])
    return [Preference(pictures.read(_portrait()), portrait, disc), Preference(np.asarray(drawn), disc, portrait)]


def check_preferences(known: list[Preference], score: Callable[[list, list[str]], list[float]], fingerprint: str) -> None:
    """Raise ScorerFailed when a picture's caption does not score higher than the worse one."""
    captions = [k.prompt for k in known] + [k.worse for k in known]
    scores = score([k.image for k in known] * 2, captions)
    for k, high, low in zip(known, scores, scores[len(known) :], strict=False):
        if high <= low:
            raise ScorerFailed(
                f"the preference model is wrong on a golden picture: {k.prompt!r} fits it and scores {high:.2f}, "
                f"{k.worse!r} does not and scores {low:.2f} ({fingerprint})"
            )


def check_colors(colors_of: Callable) -> None:
    """Classify drawn discs of four plain colours; raises ScorerFailed, naming the colour, when one is called another."""
    canvas = Image.new("L", (256, 256))
    ImageDraw.Draw(canvas).ellipse((48, 48, 207, 207), fill=255)
    mask = np.asarray(canvas) > 0
    disc = Detection("sports ball", (48, 48, 208, 208), 1.0, mask)
    pictures = [np.where(mask[..., None], rgb, 200).astype(np.uint8) for rgb in _DISCS.values()]
    for color, named in zip(_DISCS, colors_of([(picture, disc) for picture in pictures]), strict=True):
        if named != color:
            raise ScorerFailed(
                f"scorers.geneval.color_model calls a {color} disc {named}; check the weights and the precision, "
                f"or name pictures with answers of your own in scorers.geneval.golden"
            )


def _portrait() -> Path:
    from matplotlib import get_data_path

    path = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    if not path.is_file():
        raise InputError(
            f"the golden picture {path} is missing; install matplotlib from PyPI, or give your own (docs/reference/scorers.md)"
        )
    return path
