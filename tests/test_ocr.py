"""The lettering score: its rule by hand, and RapidOCR on rendered ground truth."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from star.config import Scorers, load
from star.errors import InputError
from star.miniature.captions import caption, split
from star.miniature.scenes import CARRIERS, compose, render
from star.scoring import make_scorer
from star.scoring.ocr import similarity, target_of


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
    assert target_of({"prompt": "a sign", "metadata": {"text": "HAT"}}) == "HAT"
    assert target_of({"prompt": 'a sign that says "New York" at dusk', "metadata": {}}) == "New York"
    for prompt in ("a sign", 'a sign that says ""', 'a sign that says " "'):
        with pytest.raises(InputError, match=r"a sign.*quoted target"):
            target_of({"prompt": prompt, "metadata": {}})


def test_rendered_lettering_is_read(line_scorer: object) -> None:
    rng = np.random.default_rng(11)
    drawn = split("ocr", 96)[0][:510]
    assert {d["carrier"] for d in drawn} == set(CARRIERS)
    records = [{"prompt": caption(d), "metadata": d} for d in drawn]
    scores = np.array([s["score"] for s in line_scorer([render(compose(d, rng)) for d in drawn], records)])
    assert scores.mean() >= 0.95
    for carrier in CARRIERS:
        assert scores[[d["carrier"] == carrier for d in drawn]].mean() >= 0.95


def test_pictures_without_lettering_score_nothing(line_scorer: object) -> None:
    record = {"prompt": 'a sign that says "HAT"', "metadata": {}}
    blank = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    assert [s["reward"] for s in line_scorer(blank, [record] * 3)] == [0.0] * 3
    assert line_scorer([], []) == []


def test_page_mode_reads_boxes_in_order() -> None:
    from matplotlib import font_manager

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 40)
    page = Image.new("RGB", (512, 256), "white")
    draw = ImageDraw.Draw(page)
    draw.text((40, 40), "Fresh", font=font, fill="black")
    draw.text((300, 40), "Bread", font=font, fill="black")
    draw.text((40, 160), "Daily", font=font, fill="black")
    scorer = make_scorer("ocr", Scorers(ocr_engine="rapidocr", ocr_mode="page"))
    scored = scorer([np.asarray(page)], [{"prompt": 'a shop, "Fresh Bread Daily"', "metadata": {}}])
    assert scored[0]["read"].replace(" ", "") == "FreshBreadDaily"
    assert scored[0]["score"] == 1.0


def test_fingerprint_and_missing_engine(line_scorer: object) -> None:
    assert "mode=line size=64" in line_scorer.fingerprint and "rapidocr-3" in line_scorer.fingerprint
    with pytest.raises(InputError, match=r"scorers\.ocr_engine: easyocr"):
        make_scorer("ocr", Scorers(ocr_engine="easyocr"))
