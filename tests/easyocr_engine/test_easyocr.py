"""EasyOCR itself, class and weights, end to end. Not part of the default run: `make test-easyocr`."""

import hashlib
import shutil
import socket
from pathlib import Path

import easyocr_en_models
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from records import asked
from scorer_settings import scorers

from star.errors import InputError
from star.prompts.record import Prompt
from star.scoring import engines
from star.scoring.engines import reading_order
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import caption, split
from star.worlds.miniature.scenes import compose, render

WEIGHTS = Path(easyocr_en_models.model_dir())
FILES = ("craft_mlt_25k.pth", "english_g2.pth")
WORDS = (*("HAT", "Fresh Bread", "OPEN", "Hello World", "STAR 2026", "Sale 50%"),)
WORDS += ("Quiet Please", "Exit", "Coffee", "No Parking", "Book Fair", "Welcome")


def _scorer(**settings: object) -> object:
    return make_scorer("ocr", scorers(ocr_engine="easyocr", ocr_weights=str(WEIGHTS), device="cpu", **settings))


@pytest.fixture(scope="module")
def pages() -> object:
    return _scorer()


def _word(text: str, side: int = 256) -> np.ndarray:
    picture = Image.new("RGB", (side, side), (235, 230, 220))
    draw, size = ImageDraw.Draw(picture), side // 6
    path = font_manager.findfont("DejaVu Sans")
    while draw.textlength(text, ImageFont.truetype(path, size)) > 0.85 * side:
        size -= 2
    draw.text((side / 2, side / 2), text, font=ImageFont.truetype(path, size), fill=(30, 30, 60), anchor="mm")
    return np.asarray(picture)


def _page() -> np.ndarray:
    page = Image.new("RGB", (512, 256), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 40)
    for xy, text in (((40, 160), "Daily"), ((300, 36), "Bread"), ((40, 44), "Fresh")):  # the left one a little lower
        draw.text(xy, text, font=font, fill="black")
    return np.asarray(page)


def _record(text: str) -> Prompt:
    return asked(f'a sign that says "{text}"')


def test_rendered_words_are_read(pages: object) -> None:
    scored = pages([_word(word) for word in WORDS], [_record(word) for word in WORDS])
    assert [line.score for line in scored] == [1.0] * len(WORDS), [line.findings["read"] for line in scored]


def test_miniature_lettering_is_read() -> None:
    rng = np.random.default_rng(11)
    drawn = split("ocr", 96)[0][:24]
    records = [asked(caption(d), d) for d in drawn]
    scored = _scorer(ocr_size=256)([render(compose(d, rng)) for d in drawn], records)
    assert np.mean([line.score for line in scored]) >= 0.95


def test_a_page_is_read_in_order_and_a_blank_one_is_empty(pages: object) -> None:
    scored = pages([_page(), np.full((64, 64, 3), 255, np.uint8)], [_record("Fresh Bread Daily")] * 2)
    assert [line.findings["read"] for line in scored] == ["Fresh Bread Daily", ""]
    assert [line.score for line in scored] == [1.0, 0.0]


def test_what_is_read_is_what_easyocr_reads_in_a_file_alone(pages: object, tmp_path: Path) -> None:
    import easyocr

    options = {"download_enabled": False, "model_storage_directory": str(WEIGHTS), "user_network_directory": str(tmp_path)}
    reader = easyocr.Reader(["en"], gpu=False, verbose=False, **options)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    pictures = [_word("Quiet Please"), noise, _page(), _word("STAR 2026")]  # two sizes; three share a batch
    together = [line.findings["read"] for line in pages(pictures, [_record("x")] * 4)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        found = reader.readtext(str(tmp_path / f"{number}.png"))
        assert together[number] == " ".join(found[i][1] for i in reading_order([box for box, *_ in found]))


def test_fingerprint_is_of_these_weights(pages: object) -> None:
    digest = hashlib.sha256(b"".join((WEIGHTS / name).read_bytes() for name in FILES)).hexdigest()
    assert f"craft_mlt_25k+english_g2@{digest[:12]} easyocr-1.7.2 torch-2.13.0" in pages.fingerprint


def test_spoilt_weights_are_bad_input(tmp_path: Path) -> None:
    for name in FILES:
        shutil.copy(WEIGHTS / name, tmp_path)
    (tmp_path / "english_g2.pth").write_bytes(b"spoilt")
    with pytest.raises(InputError, match=r"scorers\.ocr\.weights: .*MD5 mismatch"):
        make_scorer("ocr", scorers(ocr_engine="easyocr", ocr_weights=str(tmp_path), device="cpu"))


def test_the_doctor_finds_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import easyocr.config

    assert engines.easyocr_found(str(WEIGHTS)) == f"easyocr, weights in {WEIGHTS}"
    with pytest.raises(InputError, match=r"scorers\.ocr\.weights: ") as refused:
        engines.easyocr_found(str(tmp_path))
    assert all(str(tmp_path / name) in str(refused.value) for name in FILES)
    monkeypatch.setattr(easyocr.config, "MODULE_PATH", str(tmp_path / "own"))
    with pytest.raises(InputError, match="run `star fetch` with a network") as refused:
        engines.easyocr_found(None)
    assert str(tmp_path / "own/model" / FILES[0]) in str(refused.value)


def test_without_network_and_weights_it_says_so_and_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import easyocr.config

    monkeypatch.setattr(easyocr.config, "MODULE_PATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closed = f"http://127.0.0.1:{listening.getsockname()[1]}/weights.zip"
    monkeypatch.setitem(easyocr.config.detection_models["craft"], "url", closed)
    with pytest.raises(InputError, match=r"scorers\.ocr\.weights: EasyOCR has not got its weights .*refused"):
        make_scorer("ocr", scorers(ocr_engine="easyocr", device="cpu"))


def test_pickscore_lives_beside_it(pages: object) -> None:
    folder = "resources/miniature/pickscore"
    scorer = make_scorer("pickscore", scorers(pickscore_model=folder, pickscore_processor=folder, device="cpu"))
    (scored,) = scorer([np.zeros((64, 64, 3), np.uint8)], [asked("a red circle")])
    assert np.isfinite(scored.score)
