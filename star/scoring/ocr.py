"""Lettering: how much of the quoted target a text recogniser reads in the picture.

Source of the rule: Flow-GRPO's OCR reward (arXiv 2505.05470); the engine is RapidOCR (PP-OCR on onnxruntime), whose weights
come inside its package. Two modes: `page` finds text boxes, then reads them in reading order; `line` takes the whole picture
for one line, which is six times faster and right where the picture holds one word.
"""

import hashlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from star.errors import InputError

LINE_HEIGHT = 48  # pixels; what the recogniser was trained on
_BATCH = 12
_THREADS = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "enable_cpu_mem_arena": True}


def target_of(record: dict) -> str:
    """The text that the picture of a prompt record should show: its metadata's `text`, else the quoted part of the prompt.

    Raises InputError, naming the prompt, when there is none.
    """
    quoted = re.search(r'"([^"]+)"', record["prompt"])
    text = record["metadata"].get("text") or (quoted.group(1) if quoted else "")
    if not _plain(text):
        raise InputError(
            f'prompt {record["prompt"]!r}: no quoted target; the ocr task needs one, as in: a sign that says "HAT"'
        )
    return text


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def similarity(read: str, target: str) -> float:
    """1 - distance / len(target), without spaces and case; distance is 0 for a substring, else Levenshtein's, capped."""
    read, target = _plain(read), _plain(target)
    distance = 0 if target in read else min(Levenshtein.distance(read, target), len(target))
    return 1 - distance / len(target)


class OcrScorer:
    """RapidOCR: `score` and `reward` are the similarity of what it reads with the target.

    `size` in pixels: in `line` mode the picture is stretched to this width at 48 pixels height; in `page` mode it is scaled
    to this height before boxes are looked for; None keeps its proportions or size.
    """

    def __init__(self, engine: str, mode: str, size: int | None) -> None:
        if engine != "rapidocr":
            raise InputError(f"scorers.ocr_engine: {engine} is not available in this version; use rapidocr")
        from rapidocr import RapidOCR

        self._mode, self._size = mode, size
        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,
                "Global.text_score": 0.0,  # every box counts, as in the source
                "Rec.rec_batch_num": _BATCH,
                "Rec.rec_img_shape": [3, LINE_HEIGHT, LINE_HEIGHT if mode == "line" else 320],  # no padding of single words
                **{f"EngineConfig.onnxruntime.{key}": value for key, value in _THREADS.items()},
            }
        )
        self._engine(np.full((LINE_HEIGHT, LINE_HEIGHT, 3), 255, np.uint8), use_det=False)  # loads it
        used = ("det", "rec") if mode == "page" else ("rec",)
        folder = Path(self._engine.cfg.Global.model_root_dir)
        weights = [path for kind in used for path in sorted(folder.glob(f"*_{kind}_*.onnx"))]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()[:12]
        names = "+".join(path.stem for path in weights)
        versions = f"rapidocr-{version('rapidocr')} onnxruntime-{version('onnxruntime')}"
        self.fingerprint = f"ocr {names}@{digest} {versions} mode={mode} size={size}"

    def check(self, records: Sequence[dict]) -> None:
        """Raise InputError when a prompt has no quoted target."""
        for record in records:
            target_of(record)

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[dict]) -> list[dict]:
        """Read uint8 [H, W, 3] pictures: score, reward, `read` (what was read) and `target`. An engine failure raises."""
        targets = [target_of(record) for record in records]
        read = self._lines(images) if self._mode == "line" else [self._page(image) for image in images]
        scores = [similarity(*pair) for pair in zip(read, targets, strict=True)]
        return [{"score": s, "reward": s, "read": r, "target": t} for s, r, t in zip(scores, read, targets, strict=True)]

    def _lines(self, images: Sequence[np.ndarray]) -> list[str]:
        import cv2
        from rapidocr.ch_ppocr_rec import TextRecInput

        if not len(images):
            return []
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        if self._size is not None:
            bgr = [cv2.resize(image, (self._size, LINE_HEIGHT)) for image in bgr]
        return list(self._engine.text_rec(TextRecInput(img=bgr)).txts)

    def _page(self, image: np.ndarray) -> str:
        import cv2

        bgr = np.ascontiguousarray(image[..., ::-1])
        if self._size is not None:
            height, width = bgr.shape[:2]
            bgr = cv2.resize(bgr, (round(width * self._size / height), self._size), interpolation=cv2.INTER_CUBIC)
        return "".join(self._engine(bgr, use_det=True).txts or ())
