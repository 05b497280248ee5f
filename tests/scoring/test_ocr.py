"""The lettering score: its rule by hand, and RapidOCR on rendered ground truth."""

import hashlib
import os
import socket
import sys
import types
import urllib.error
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hub_server import Hub
from PIL import Image, ImageDraw, ImageFont
from records import asked
from scorer_settings import scorers

from star.config import load
from star.errors import InputError
from star.scoring import engines
from star.scoring.engines import reading_order
from star.scoring.ocr import GOLDEN, golden, similarity, target_of
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import caption, split
from star.worlds.miniature.scenes import CARRIERS, compose, render


@pytest.fixture(scope="module")
def line_scorer() -> object:
    return make_scorer("ocr", load("config/miniature.yaml").scorers)


@pytest.mark.parametrize(
    ("read", "target", "expected"),
    [
        ("HAT", "HAT", 1.0),
        ("h a t", "HAT", 1.0),
        ("THE HAT!", "hat", 1.0),  # a substring
        ("CAT", "HAT", 2 / 3),
        ("", "HAT", 0.0),
        ("completely other words", "HAT", 0.0),  # capped at the target's length
        ("HA", "HAT", 2 / 3),
        ("Hello Wrld", "Hello World", 0.9),
    ],
)
def test_rule(read: str, target: str, expected: float) -> None:
    assert similarity(read, target) == pytest.approx(expected)


def test_target() -> None:
    assert target_of(asked("a sign", {"text": "HAT"})) == "HAT"
    assert target_of(asked('a sign that says "New York" at dusk')) == "New York"
    for prompt in ("a sign", 'a sign that says ""', 'a sign that says " "'):
        with pytest.raises(InputError, match=r"a sign.*quoted target"):
            target_of(asked(prompt))


def test_rendered_lettering_is_read(line_scorer: object) -> None:
    rng = np.random.default_rng(11)
    drawn = split("ocr", 96)[0][:510]
    assert {d["carrier"] for d in drawn} == set(CARRIERS)
    records = [asked(caption(d), d) for d in drawn]
    scores = np.array([s.score for s in line_scorer([render(compose(d, rng)) for d in drawn], records)])
    assert scores.mean() >= 0.95
    for carrier in CARRIERS:
        assert scores[[d["carrier"] == carrier for d in drawn]].mean() >= 0.95


def test_pictures_without_lettering_score_nothing(line_scorer: object) -> None:
    record = asked('a sign that says "HAT"')
    blank = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    assert [s.reward for s in line_scorer(blank, [record] * 3)] == [0.0] * 3
    assert line_scorer([], []) == []


def test_page_mode_reads_boxes_in_order() -> None:
    from matplotlib import font_manager

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 40)
    page = Image.new("RGB", (512, 256), "white")
    draw = ImageDraw.Draw(page)
    draw.text((40, 40), "Fresh", font=font, fill="black")
    draw.text((300, 40), "Bread", font=font, fill="black")
    draw.text((40, 160), "Daily", font=font, fill="black")
    scorer = make_scorer("ocr", scorers(ocr_engine="rapidocr", ocr_mode="page"))
    scored = scorer([np.asarray(page)], [asked('a shop, "Fresh Bread Daily"')])
    assert scored[0].findings["read"].replace(" ", "") == "FreshBreadDaily"
    assert scored[0].score == 1.0


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], []),
        ([_box(50, 0, 90, 10), _box(0, 0, 40, 10)], [1, 0]),  # one line, from the left
        ([_box(0, 30, 40, 40), _box(50, 0, 90, 10)], [1, 0]),  # two lines, from the top
        ([_box(50, 0, 90, 10), _box(0, 4, 40, 14)], [1, 0]),  # six of ten pixels overlap: one line
        ([_box(50, 0, 90, 10), _box(0, 6, 40, 16)], [0, 1]),  # four do: two lines
        ([_box(50, 0, 90, 40), _box(0, 15, 40, 25)], [1, 0]),  # small print inside a tall line
        ([_box(0, 0, 9, 10), _box(10, 4, 19, 14), _box(20, 8, 29, 18)], [0, 1, 2]),  # a slope: a line is its first box
        ([_box(20, 0, 29, 10), _box(10, 4, 19, 14), _box(0, 8, 9, 18)], [1, 0, 2]),
        ([_box(0, 0, 9, 10), _box(0, 0, 9, 10)], [0, 1]),  # at one place
        ([[(8, 20), (40, 12), (42, 20), (10, 28)], _box(50, 13, 90, 27), _box(0, 0, 90, 9)], [2, 0, 1]),  # a tilted box
    ],
)
def test_reading_order(boxes: list, expected: list[int]) -> None:
    assert reading_order(boxes) == expected


def test_reading_order_does_not_depend_on_the_order_of_detection() -> None:
    rng = np.random.default_rng(0)
    lines = [[_box(x, y + rng.uniform(0, 3), x + 8, y + 10) for x in (0, 10, 20)] for y in (0, 12, 24)]
    boxes = [box for line in lines for box in line]
    for _ in range(20):
        shuffled = [boxes[i] for i in rng.permutation(9)]
        assert [shuffled[i] for i in reading_order(shuffled)] == boxes


@pytest.mark.parametrize(("mode", "size", "least"), [("page", 256, 0.6), ("line", None, 0.0)])
def test_a_picture_reads_the_same_beside_others(mode: str, size: int | None, least: float) -> None:
    rng = np.random.default_rng(12)
    drawn = split("ocr", 96)[0][:4]
    pictures = [render(compose(d, rng)) for d in drawn]
    pictures[1] = pictures[1][16:48]  # wider than the others
    records = [asked(caption(d), d) for d in drawn]
    scorer = make_scorer("ocr", scorers(ocr_engine="rapidocr", ocr_mode=mode, ocr_size=size))
    together = scorer(pictures, records)
    assert together == [scorer([p], [r])[0] for p, r in zip(pictures, records, strict=True)]
    assert np.mean([line.score for line in together]) >= least


def test_an_engine_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_once(images: list[np.ndarray]) -> list[str]:
        if np.array_equal(images[0], golden()):
            return [GOLDEN]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engines, "rapidocr", lambda *_: engines.Engine(reads_once, "an engine"))
    scorer = make_scorer("ocr", scorers(ocr_engine="rapidocr"))
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer([np.zeros((8, 8, 3), np.uint8)], [asked('a sign that says "HAT"')])


def test_fingerprint_and_missing_engine(line_scorer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mode=line size=64" in line_scorer.fingerprint and "rapidocr-3" in line_scorer.fingerprint
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"scorers\.device: cuda"):
        make_scorer("ocr", scorers(ocr_engine="rapidocr", device="cuda"))
    monkeypatch.setitem(sys.modules, "easyocr", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"scorers\.ocr\.engine: easyocr needs the package easyocr"):
        make_scorer("ocr", scorers(ocr_engine="easyocr"))


# EasyOCR's handling of ours, with a Reader that reads nothing; tests/easyocr_engine drives the real one (`make test-easyocr`).
class _Reader:
    """Finds what the first row of a picture says: (x, y, letter) in the three channels of a pixel, or nothing where black.

    The golden picture is white; in it, it finds `golden`.
    """

    golden = "STAR"

    built: ClassVar[list[dict]] = []
    batches: ClassVar[list[tuple]] = []

    def __init__(self, languages: list[str], **options: object) -> None:
        self.built.append({"languages": languages, "forced": os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"), **options})
        if options["download_enabled"]:
            raise urllib.error.URLError("no network")

    def detect(self, images: np.ndarray, reformat: bool) -> tuple[list, list]:
        self.batches.append(images.shape)
        boxes = [[(int(x), int(y), chr(c)) for x, y, c in image[0] if c and (x, y, c) != (255, 255, 255)] for image in images]
        return boxes, [[] for _ in boxes]

    def recognize(self, grey: np.ndarray, horizontal: list = (), free: list = (), reformat: bool = True) -> list[tuple]:
        assert grey.ndim == 2 and not reformat
        if grey.shape == (96, 256):
            return [(_box(0, 0, 256, 96), self.golden, 0.9)]
        if grey[0, 0] == 255:
            raise RuntimeError("engine failure")
        return [(_box(x, y, x + 8, y + 10), letter, 0.9) for x, y, letter in horizontal]


@pytest.fixture
def easyocr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights for the module easyocr that stands in for the package."""
    module, config = types.ModuleType("easyocr"), types.ModuleType("easyocr.config")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closed = "http://127.0.0.1:{}/weights.zip".format(*listening.getsockname()[1:])
    module.Reader = _Reader
    config.MODULE_PATH = str(tmp_path / "own")
    config.detection_models = {"craft": {"filename": "craft_mlt_25k.pth", "url": closed}}
    config.recognition_models = {"gen2": {"english_g2": {"filename": "english_g2.pth", "url": closed}}}
    monkeypatch.setitem(sys.modules, "easyocr", module)
    monkeypatch.setitem(sys.modules, "easyocr.config", config)
    monkeypatch.setattr(engines, "version", lambda package: f"{package}-version")
    monkeypatch.setattr(_Reader, "golden", "STAR")
    _Reader.built.clear(), _Reader.batches.clear()
    (tmp_path / "craft_mlt_25k.pth").write_bytes(b"detector")
    (tmp_path / "english_g2.pth").write_bytes(b"recogniser")
    return tmp_path


def _written(*letters: tuple[int, int, str], size: int = 32) -> np.ndarray:
    picture = np.zeros((size, size, 3), np.uint8)
    for column, (x, y, letter) in enumerate(letters):
        picture[0, column] = x, y, ord(letter)
    return picture


def test_easyocr_boxes_are_ordered_and_pictures_batched_by_size(easyocr: Path) -> None:
    scorer = make_scorer("ocr", scorers(ocr_engine="easyocr", ocr_weights=str(easyocr)))
    pictures = [_written((20, 1, "B"), (1, 20, "C"), (1, 2, "A")), _written(size=48), _written((0, 0, "D"))]
    scored = scorer(pictures, [asked('a sign that says "ABC"')] * 3)
    assert [line.findings["read"] for line in scored] == ["A B C", "", "D"]
    assert [line.score for line in scored] == [1.0, 0.0, 0.0]
    assert _Reader.batches == [(1, 96, 256, 3), (2, 32, 32, 3), (1, 48, 48, 3)]  # the golden picture first
    assert scorer([], []) == []
    with pytest.raises(RuntimeError, match="engine failure"):
        scorer([np.full((8, 8, 3), 255, np.uint8)], [asked('a "B"')])


def test_easyocr_fingerprint_holds_engine_versions_and_weights(easyocr: Path) -> None:
    chosen = scorers(ocr_engine="easyocr", ocr_weights=str(easyocr), device="cpu")
    fingerprint = make_scorer("ocr", chosen).fingerprint
    digest = hashlib.sha256(b"detectorrecogniser").hexdigest()[:12]
    for part in (f"craft_mlt_25k+english_g2@{digest}", "easyocr-easyocr-version", "torch-torch-version", "cpu mode=page"):
        assert part in fingerprint
    line = make_scorer(
        "ocr", scorers(ocr_engine="easyocr", ocr_mode="line", ocr_weights=str(easyocr), device="cpu")
    ).fingerprint
    assert f"english_g2@{hashlib.sha256(b'recogniser').hexdigest()[:12]}" in line and "craft" not in line
    (easyocr / "english_g2.pth").write_bytes(b"another")
    assert make_scorer("ocr", chosen).fingerprint != fingerprint
    assert _Reader.built[0]["forced"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert _Reader.built[0]["languages"] == ["en"] and _Reader.built[0]["gpu"] is False


def test_an_engine_that_misreads_the_golden_picture_does_not_score(easyocr: Path) -> None:
    _Reader.golden = "STAB"
    with pytest.raises(RuntimeError, match=r"craft_mlt_25k.*reads 'STAB' in a golden picture of 'STAR'"):
        make_scorer("ocr", scorers(ocr_engine="easyocr", ocr_weights=str(easyocr)))


def test_easyocr_without_weights_is_bad_input(easyocr: Path) -> None:
    with pytest.raises(InputError, match=r"scorers\.ocr\.weights: .*refused.*rapidocr"):
        make_scorer("ocr", scorers(ocr_engine="easyocr"))
    assert _Reader.built == []  # it would ask again and again
    with Hub().running() as server:
        server.folders = {"some/weights": easyocr}
        model = sys.modules["easyocr.config"].detection_models["craft"]
        model["url"] = f"{server.url}/some/weights/resolve/main/{model['filename']}"
        with pytest.raises(InputError, match=r"scorers\.ocr\.weights: .*no network.*rapidocr"):
            make_scorer("ocr", scorers(ocr_engine="easyocr"))
    assert len(_Reader.built) == 1
    (easyocr / "english_g2.pth").unlink()
    with pytest.raises(InputError, match=r"scorers\.ocr\.weights: .*english_g2\.pth is missing"):
        make_scorer("ocr", scorers(ocr_engine="easyocr", ocr_weights=str(easyocr)))
    assert len(_Reader.built) == 1
