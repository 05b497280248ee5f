"""The two text recognisers behind the lettering score: EasyOCR, and RapidOCR, whose weights come inside its package.

An engine reads pictures, uint8 [H, W, 3], into strings. In mode `page` it finds boxes of text and joins what is in them in
`reading_order`; in mode `line` it takes the whole picture for one line. `size`: see OcrScorer. What an engine raises is not
caught.
"""

import hashlib
import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np

from star.errors import InputError
from star.runtime import declare_torchvision

LINE_HEIGHT = 48  # pixels; what RapidOCR's recogniser was trained on
_LINES, _PAGES = 12, 8  # pictures at once
_THREADS = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "enable_cpu_mem_arena": True}


class Engine(NamedTuple):
    """What reads: pictures to strings, and its fingerprint (engine, versions, hash of its weights, settings)."""

    read: Callable[[Sequence[np.ndarray]], list[str]]
    fingerprint: str


def reading_order(boxes: Sequence[Sequence[Sequence[float]]]) -> list[int]:
    """The order in which boxes are read: lines from top to bottom, in a line from left to right. Ours.

    A box is a polygon of (x, y) corners, pixels. Boxes are taken from top to bottom by their middle; one that overlaps the
    first box of the current line vertically by at least half of the lower of the two belongs to that line, any other begins
    the next. Boxes at the same place keep their order.
    """
    corners = [np.asarray(box, float) for box in boxes]
    top, bottom = [c[:, 1].min() for c in corners], [c[:, 1].max() for c in corners]
    lines: list[list[int]] = []
    for i in sorted(range(len(corners)), key=lambda i: top[i] + bottom[i]):
        if lines:
            first = lines[-1][0]
            overlap = min(bottom[i], bottom[first]) - max(top[i], top[first])
            if overlap >= 0.5 * min(bottom[i] - top[i], bottom[first] - top[first]):
                lines[-1].append(i)
                continue
        lines.append([i])
    return [i for line in lines for i in sorted(line, key=lambda i: corners[i][:, 0].min())]


def _joined(boxes: Sequence, texts: Sequence[str]) -> str:
    return " ".join(texts[i] for i in reading_order(boxes))


def _scaled(image: np.ndarray, size: int | None) -> np.ndarray:
    import cv2

    if size is None:
        return image
    height, width = image.shape[:2]
    return cv2.resize(image, (max(1, round(width * size / height)), size), interpolation=cv2.INTER_CUBIC)


def _digest(weights: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()[:12]


def rapidocr(mode: str, size: int | None, device: str) -> Engine:
    """RapidOCR (PP-OCR on onnxruntime), on the GPU where onnxruntime was built for one.

    Lines of one shape are read in batches, pages one by one: the recogniser pads a batch to its widest crop, and what a
    picture scores must not depend on the others. Raises InputError for `device` cuda without such an onnxruntime.
    """
    import onnxruntime
    from rapidocr import RapidOCR

    can = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not can:
        raise InputError("scorers.device: cuda, but this onnxruntime has no CUDA; install onnxruntime-gpu, or use auto")
    on_gpu = can and device != "cpu"
    engine = RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "Global.text_score": 0.0,  # every box counts, as in the source
            "Rec.rec_batch_num": _LINES,
            "Rec.rec_img_shape": [3, LINE_HEIGHT, LINE_HEIGHT if mode == "line" else 320],  # no padding of single words
            "EngineConfig.onnxruntime.use_cuda": on_gpu,
            **{f"EngineConfig.onnxruntime.{key}": value for key, value in _THREADS.items()},
        }
    )
    engine(np.full((LINE_HEIGHT, LINE_HEIGHT, 3), 255, np.uint8), use_det=False)  # loads it

    def lines(images: Sequence[np.ndarray]) -> list[str]:
        import cv2
        from rapidocr.ch_ppocr_rec import TextRecInput

        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        if size is not None:
            bgr = [cv2.resize(image, (size, LINE_HEIGHT)) for image in bgr]
        texts = [""] * len(bgr)
        for rows in _of_one_size(bgr, _LINES):
            for i, text in zip(rows, engine.text_rec(TextRecInput(img=[bgr[i] for i in rows])).txts, strict=True):
                texts[i] = text
        return texts

    def page(image: np.ndarray) -> str:
        found = engine(_scaled(np.ascontiguousarray(image[..., ::-1]), size), use_det=True)
        return _joined(found.boxes, found.txts) if found.txts else ""

    folder = Path(engine.cfg.Global.model_root_dir)
    used = ("det", "rec") if mode == "page" else ("rec",)
    weights = [path for kind in used for path in sorted(folder.glob(f"*_{kind}_*.onnx"))]
    versions = f"rapidocr-{version('rapidocr')} onnxruntime-{version('onnxruntime')}"
    settings = f"mode={mode} size={size}" + (" order=lines" if mode == "page" else "") + (" cuda" if on_gpu else "")
    names = "+".join(path.stem for path in weights)
    fingerprint = f"{names}@{_digest(weights)} {versions} {settings}"
    return Engine(lines if mode == "line" else lambda images: [page(image) for image in images], fingerprint)


def rapidocr_found() -> str:
    """Where RapidOCR's weights are. Raises InputError when the package is missing or lacks one."""
    package = importlib.util.find_spec("rapidocr")
    if package is None:
        raise InputError("scorers.ocr.engine: rapidocr needs its package; run `make install`")
    folder = Path(package.origin).parent / "models"
    if absent := [name for name in ("*_det_*.onnx", "*_rec_*.onnx") if not list(folder.glob(name))]:
        raise InputError(
            f"scorers.ocr.engine: rapidocr, weights in {folder} lack {', '.join(absent)}: "
            "`pip install --force-reinstall rapidocr`"
        )
    return f"rapidocr, weights in {folder}"


def easyocr_models(weights: str | None) -> list[tuple[Path, str]]:
    """Detector and recogniser: the file in the folder `weights`, None is EasyOCR's own, and where EasyOCR fetches it.

    Raises InputError when the package is missing.
    """
    declare_torchvision()
    try:
        from easyocr.config import MODULE_PATH, detection_models, recognition_models
    except ModuleNotFoundError as error:
        raise InputError(
            f"scorers.ocr.engine: easyocr needs the package {error.name}; install the extra `easyocr`, or use rapidocr"
        ) from None
    models = (detection_models["craft"], recognition_models["gen2"]["english_g2"])
    return [(Path(weights or Path(MODULE_PATH, "model"), model["filename"]), model["url"]) for model in models]


def easyocr_found(weights: str | None) -> str:
    """Where EasyOCR's weights are. Raises InputError as `easyocr_models`, and when one is missing."""
    files = [file for file, _ in easyocr_models(weights)]
    if absent := ", ".join(str(file) for file in files if not file.is_file()):
        if weights is not None:
            remedy = "name the folder that has EasyOCR's weights, or leave the key out"
            raise InputError(f"scorers.ocr.weights: {absent} missing: {remedy}")
        remedy = "run `star fetch` with a network, or name a folder: scorers.ocr.weights"
        raise InputError(f"scorers.ocr.engine: {absent} missing: {remedy}")
    return f"easyocr, weights in {files[0].parent}"


def easyocr_fetched(mode: str, size: int | None) -> str:
    """Let EasyOCR download its weights; returns the fingerprint. Raises InputError as `easyocr`."""
    return easyocr(mode, size, "cpu", None).fingerprint


def easyocr(mode: str, size: int | None, device: str, weights: str | None) -> Engine:
    """EasyOCR for English: `easyocr.Reader` with its CRAFT detector (mode `page`) and its recogniser english_g2.

    `weights` is a folder that holds craft_mlt_25k.pth and english_g2.pth; None is EasyOCR's own folder, into which it
    downloads them once. It checks their MD5; torch loads them as weights only. Boxes are looked for in batches of pictures of
    one size, as RGB, as EasyOCR itself reads a file. Raises InputError when the package or the weights are missing.
    """
    models = easyocr_models(weights)
    files = [file for file, _ in models]
    from easyocr import Reader

    from star.hub import check as hub
    from star.hub.weights import resolve

    if weights is not None and (missing := [file for file in files if not file.is_file()]):
        raise InputError(f"scorers.ocr.weights: {missing[0]} is missing; name the folder with EasyOCR's weights, or none")
    where = resolve(device)
    options = {} if weights is None else {"model_storage_directory": weights, "user_network_directory": weights}
    with _weights_only():
        try:
            absent = [url for file, url in models if not file.is_file()]
            if absent and (error := hub.attempt(lambda: urlopen(absent[0]).close())):  # EasyOCR would wait without limit
                raise error
            reader = Reader(["en"], gpu=where == "cuda", download_enabled=weights is None, verbose=False, **options)
        except OSError as error:  # no network, or another MD5
            why = " ".join(str(error).split())[:160]
            raise InputError(
                f"scorers.ocr.weights: EasyOCR has not got its weights ({why}); run once with network, or give the folder "
                "that holds them, or use scorers.ocr.engine: rapidocr"
            ) from None
    if where == "cuda":  # out of its DataParallel, which wants the first GPU; a training's other processes have others
        reader.detector, reader.recognizer = reader.detector.module, reader.recognizer.module
    warnings.filterwarnings("ignore", message=".*pin_memory", category=UserWarning)  # at every box, on CPU

    def pages(images: Sequence[np.ndarray]) -> list[str]:
        texts = [""] * len(images)
        scaled = [_scaled(image, size) for image in images]
        for rows in _of_one_size(scaled, _PAGES):
            horizontal, free = reader.detect(np.stack([scaled[i] for i in rows]), reformat=False)
            for i, *boxes in zip(rows, horizontal, free, strict=True):
                found = reader.recognize(_grey(scaled[i]), *boxes, reformat=False)
                texts[i] = _joined([box for box, _, _ in found], [text for _, text, _ in found])
        return texts

    def lines(images: Sequence[np.ndarray]) -> list[str]:
        found = (reader.recognize(_grey(_scaled(image, size)), reformat=False) for image in images)
        return [" ".join(text for _, text, _ in line) for line in found]

    used = files if mode == "page" else files[1:]
    names = "+".join(file.stem for file in used)
    versions = f"easyocr-{version('easyocr')} torch-{version('torch')}"
    settings = f"{where} mode={mode} size={size}" + (" order=lines" if mode == "page" else "")
    return Engine(pages if mode == "page" else lines, f"{names}@{_digest(used)} {versions} {settings}")


@contextmanager
def _weights_only() -> Iterator[None]:
    """EasyOCR asks torch.load to unpickle whatever its files hold; torch's own switch forbids it."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        os.environ.pop(switch) if before is None else os.environ.update({switch: before})


def _of_one_size(images: Sequence[np.ndarray], batch: int) -> Iterator[list[int]]:
    """Rows of `images` in batches of one shape, at most `batch` long."""
    rows = sorted(range(len(images)), key=lambda i: images[i].shape)
    for _, same in itertools.groupby(rows, key=lambda i: images[i].shape):
        same = list(same)
        yield from (same[i : i + batch] for i in range(0, len(same), batch))


def _grey(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
