"""Lettering: how much of the quoted target a text recogniser reads in the picture.

Source of the rule: Flow-GRPO's OCR reward (arXiv 2505.05470). The recognisers are in star/scoring/engines.py. Two modes:
`page` finds text boxes, then reads them in reading order; `line` takes the whole picture for one line, which is faster and
right where the picture holds one word.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.prompts import quotes
from star.prompts.record import Prompt
from star.prompts.text import plain
from star.scoring import engines
from star.scoring.score import Score

GOLDEN = "STAR"


def target_of(record: Prompt) -> str:
    """The text that the picture of a prompt record should show: its metadata's `text`, else the quoted part of the prompt.

    Raises InputError, naming the prompt, when there is none, or when its quotation marks do not pair.
    """
    text = quotes.target(record.text, record.metadata)
    if text is None:
        raise InputError(f'prompt {record.text!r}: no quoted target; the ocr task needs one, as in: a sign that says "HAT"')
    return text


def similarity(read: str, target: str) -> float:
    """1 - distance / len(target), both plain: without spaces, case and ways of writing (star.prompts.text).

    The distance is 0 for a substring, else Levenshtein's, capped.
    """
    read, target = plain(read), plain(target)
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

    tags = ()

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

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Whether a prompt record says what the picture should read, beyond doubt."""
        return quotes.has_target(record.text, record.metadata)

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt has no quoted target; say on stderr how many quote more than one."""
        for record in records:
            target_of(record)
        if said := quotes.several_targets(records):
            print(f"ocr: {said}", file=sys.stderr)

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Read uint8 [H, W, 3] pictures; findings are `read` (what was read) and `target`. An engine failure raises."""
        targets = [target_of(record) for record in records]
        read = self._engine.read(images)
        scores = [similarity(*pair) for pair in zip(read, targets, strict=True)]
        return [Score(s, s, {"read": r, "target": t}) for s, r, t in zip(scores, read, targets, strict=True)]
