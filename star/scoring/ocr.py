"""Lettering: how much of the quoted target a text recogniser reads in the picture.

Source of the rule: Flow-GRPO's OCR reward (arXiv 2505.05470). The recognisers are in star/scoring/engines.py. Two modes:
`page` finds text boxes, then reads them in reading order; `line` takes the whole picture for one line, which is faster and
right where the picture holds one word.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.prompts.record import Prompt
from star.scoring import engines

GOLDEN = "STAR"


def target_of(record: Prompt) -> str:
    """The text that the picture of a prompt record should show: its metadata's `text`, else the quoted part of the prompt.

    Raises InputError, naming the prompt, when there is none.
    """
    text = _target(record)
    if not _plain(text):
        raise InputError(f'prompt {record.text!r}: no quoted target; the ocr task needs one, as in: a sign that says "HAT"')
    return text


def has_target(record: Prompt) -> bool:
    """Whether a prompt record says what the picture should read."""
    return bool(_plain(_target(record)))


def _target(record: Prompt) -> str:
    quoted = re.search(r'"([^"]+)"', record.text)
    return record.metadata.get("text") or (quoted.group(1) if quoted else "")


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def similarity(read: str, target: str) -> float:
    """1 - distance / len(target), without spaces and case; distance is 0 for a substring, else Levenshtein's, capped."""
    read, target = _plain(read), _plain(target)
    distance = 0 if target in read else min(Levenshtein.distance(read, target), len(target))
    return 1 - distance / len(target)


def golden() -> np.ndarray:
    """A picture that every engine reads as GOLDEN, uint8 [96, 256, 3]."""
    import matplotlib

    picture = Image.new("RGB", (256, 96), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 72)
    ImageDraw.Draw(picture).text((128, 48), GOLDEN, font=font, fill="black", anchor="mm")
    return np.asarray(picture)


class OcrScorer:
    """`score` and `reward` are the similarity of the target with what the engine reads.

    scorers.ocr.size in pixels: pictures are scaled to this height before they are read; RapidOCR's mode `line` stretches
    them to this width at the 48 pixels height of its recogniser; None keeps size or proportions.
    Raises InputError when package or weights are missing, ScorerFailed when the golden picture is not read.
    """

    def __init__(self, scorers: Scorers) -> None:
        mode, size, device = scorers.ocr.mode, scorers.ocr.size, scorers.device
        if scorers.ocr.engine == "easyocr":
            self._engine = engines.easyocr(mode, size, device, scorers.ocr.weights)
        else:
            self._engine = engines.rapidocr(mode, size, device)
        self.fingerprint = f"ocr {self._engine.fingerprint}"
        (read,) = self._engine.read([golden()])
        if similarity(read, GOLDEN) < 1:
            raise ScorerFailed(f"the engine {self.fingerprint} reads {read!r} in a golden picture of {GOLDEN!r}")

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt has no quoted target."""
        for record in records:
            target_of(record)

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[dict]:
        """Read uint8 [H, W, 3] pictures: score, reward, `read` (what was read) and `target`. An engine failure raises."""
        targets = [target_of(record) for record in records]
        read = self._engine.read(images)
        scores = [similarity(*pair) for pair in zip(read, targets, strict=True)]
        return [{"score": s, "reward": s, "read": r, "target": t} for s, r, t in zip(scores, read, targets, strict=True)]
