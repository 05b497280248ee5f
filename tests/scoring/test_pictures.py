"""Pictures as a person sees them: every kind against PNGs written by hand and closed forms, through the command line."""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from star import cli
from star.errors import InputError
from star.scoring import pictures

ROOT = Path(__file__).parents[2]
PIXELS = """
import hashlib

def digest(images, records):
    return [float(int(hashlib.sha256(repr(i.shape).encode() + i.tobytes()).hexdigest()[:12], 16)) for i in images]
"""
Made = tuple[bytes, np.ndarray]  # a file's content, and what a person sees, uint8 [H, W, 3]


def _digest(seen: np.ndarray) -> float:
    return float(int(hashlib.sha256(repr(seen.shape).encode() + seen.tobytes()).hexdigest()[:12], 16))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(values_HWC: np.ndarray, color_type: int, depth: int, chunks: bytes = b"") -> bytes:
    """A PNG by its specification: colour type, bits a value, further chunks before the pixels."""
    height, width, channels = values_HWC.shape
    bits = (values_HWC[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, width * channels * depth).astype(np.uint8), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + chunks + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _size(rng: np.random.Generator) -> tuple[int, int]:
    return tuple(rng.integers(1, 20, 2).tolist())


def _grey(rng: np.random.Generator) -> Made:
    depth = int(rng.choice([1, 2, 4, 8, 16]))
    values = rng.integers(0, 2**depth, (*_size(rng), 1))
    seen = values >> 8 if depth == 16 else values * 255 // (2**depth - 1)
    key = int(values[0, 0, 0])
    transparent = bool(rng.integers(2))
    if transparent:
        seen = np.where(values == key, 255, seen)
    chunks = _chunk(b"tRNS", struct.pack(">H", key)) if transparent else b""
    return _png(values, 0, depth, chunks), seen.repeat(3, -1).astype(np.uint8)


def _colored(rng: np.random.Generator) -> Made:
    depth = int(rng.choice([8, 16]))
    seen = rng.integers(0, 256, (*_size(rng), 3))
    values = seen * 257 if depth == 16 else seen
    if depth == 8 and rng.integers(2):
        key = values[0, 0]
        return _png(values, 2, 8, _chunk(b"tRNS", struct.pack(">3H", *key.tolist()))), np.where(
            (values == key).all(-1, keepdims=True), 255, seen
        ).astype(np.uint8)
    return _png(values, 2, depth), seen.astype(np.uint8)


def _with_alpha(rng: np.random.Generator) -> Made:
    channels, depth = int(rng.choice([1, 3])), int(rng.choice([8, 16]))
    size = _size(rng)
    seen, alpha = rng.integers(0, 256, (*size, channels)), rng.choice([0, 255], (*size, 1))
    values = np.concatenate([seen, alpha], -1) * (257 if depth == 16 else 1)
    on_white = np.where(alpha == 0, 255, seen) * np.ones(3, int)
    return _png(values, 4 if channels == 1 else 6, depth), on_white.astype(np.uint8)


def _palette(rng: np.random.Generator) -> Made:
    depth = int(rng.choice([1, 2, 4, 8]))
    colors = rng.integers(0, 256, (2**depth, 3)).astype(np.uint8)
    alpha = rng.choice([0, 255], 2 ** int(rng.integers(0, depth + 1))).astype(np.uint8)
    places = rng.integers(0, 2**depth, (*_size(rng), 1))
    chunks = _chunk(b"PLTE", colors.tobytes()) + _chunk(b"tRNS", alpha.tobytes())
    shown = colors.copy()
    shown[: len(alpha)][alpha == 0] = 255
    return _png(places, 3, depth, chunks), shown[places[..., 0]]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _other_format(rng: np.random.Generator) -> Made:
    seen = rng.integers(0, 256, (*_size(rng), 3)).astype(np.uint8)
    kind = str(rng.choice(["BMP", "WEBP", "TIFF", "CMYK", "GIF", "LARGE"]))
    image = Image.fromarray(seen)
    if kind == "CMYK":
        return _saved(image.convert("CMYK"), "TIFF"), seen
    if kind == "GIF":
        grey = Image.fromarray(seen[..., 0])
        return _saved(grey, "GIF"), seen[..., :1].repeat(3, -1)
    if kind == "WEBP":
        return _saved(image, "WEBP", lossless=True, exact=True), seen
    if kind == "LARGE":  # a workflow that an image tool embeds
        text = PngImagePlugin.PngInfo()
        text.add_text("workflow", "a" * 3_000_000, zip=True)
        return _saved(image, "PNG", pnginfo=text), seen
    return _saved(image, kind), seen


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation: how to see what is stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def _turned(rng: np.random.Generator) -> Made:
    stored, orientation = rng.integers(0, 256, (*_size(rng), 3)).astype(np.uint8), int(rng.integers(1, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(Image.fromarray(stored), "PNG", exif=exif), np.ascontiguousarray(TURNS[orientation](stored))


def _photograph(rng: np.random.Generator) -> Made:
    """A JPEG, whose own decoder says what is seen: colour, grey, or Adobe's inverted CMYK."""
    seen = Image.fromarray(rng.integers(0, 256, (*_size(rng), 3)).astype(np.uint8))
    content = _saved(seen.convert(str(rng.choice(["RGB", "L", "CMYK"]))), "JPEG", progressive=bool(rng.integers(2)))
    return content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


KINDS = (_grey, _colored, _with_alpha, _palette, _other_format, _turned, _photograph)


def _score(folder: Path, out: Path) -> int:
    (folder.parent / "prompts.txt").write_text("a picture")
    where = ["--images", str(folder), "--prompts", str(folder.parent / "prompts.txt"), "--out", str(out)]
    return cli.main(["score", "--config", str(ROOT / "config/miniature.yaml"), "--scorer", "pixels:digest", *where])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scorer that tells pictures apart by every pixel."""
    folder = tmp_path_factory.mktemp("pixels")
    (folder / "pixels.py").write_text(PIXELS)
    (folder / "images").mkdir()
    return folder


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    damage=st.sampled_from(["none", "none", "none", "cut", "flipped", "noise"]),
    suffix=st.sampled_from([".png", ".png", ".jpg", ".webp", ".tif"]),
)
def test_any_picture_scores_as_it_is_seen_or_is_refused_in_a_line(
    seed: int, kind: Callable, damage: str, suffix: str, scratch: Path, monkeypatch: pytest.MonkeyPatch, capfd: object
) -> None:
    monkeypatch.chdir(scratch)
    rng = np.random.default_rng(seed)
    content, seen = kind(rng)
    if damage == "cut":
        content = content[: int(rng.integers(0, len(content)))]
    if damage == "flipped" and content.startswith(b"\x89PNG"):  # other formats have no sums to go by
        place = int(rng.integers(len(content)))
        content = content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
    if damage == "noise":
        content = content[:8] + rng.bytes(len(content) - 8)
    for old in (scratch / "images").iterdir():
        old.unlink()
    (scratch / "images" / f"1{suffix}").write_bytes(content)
    out = scratch / "out.jsonl"
    code = _score(scratch / "images", out)
    said = capfd.readouterr().err
    if code == 0:
        (line,) = map(json.loads, out.read_text().splitlines())
        assert line["score"] == _digest(seen)
    else:
        assert code == 2 and said.startswith("star score: ") and said.count("\n") == 1 and f"1{suffix}: not a readable" in said
        assert damage != "none"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_half_transparent_pixels_let_white_through(mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (16, 16, len(mode))).astype(np.uint8)
    Image.fromarray(values, mode).save(tmp_path / "x.png")
    share = values[..., -1:] / 255
    expected = (values[..., :-1] * share + 255 * (1 - share)) * np.ones(3)
    assert abs(pictures.read(tmp_path / "x.png") - expected).max() <= 1


def test_the_same_letters_are_read_on_any_ground(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Black letters over transparency, whose hidden colour is black, in each kind that can be transparent."""
    import matplotlib

    shape = Image.new("L", (256, 96))
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 72)
    ImageDraw.Draw(shape).text((128, 48), "OPEN", font=font, fill=255, anchor="mm")
    folder = tmp_path / "images"
    folder.mkdir()
    black = Image.new("RGB", shape.size)
    Image.composite(black, Image.new("RGB", shape.size, "white"), shape).save(folder / "1.png")
    rgba = black.copy()
    rgba.putalpha(shape)
    rgba.save(folder / "2.png")
    rgba.convert("LA").save(folder / "3.png")
    rgba.quantize(method=Image.Quantize.FASTOCTREE).save(folder / "4.png")
    Image.fromarray((255 - np.asarray(shape)).astype(np.uint16) * 257).save(folder / "5.png")
    (folder / "._1.png").write_bytes(b"of a Mac")
    (folder / "notes.md").write_text("no picture")
    (tmp_path / "prompts.txt").write_text('a door sign "OPEN"')
    command = ["score", "--scorer", "ocr", "--images", str(folder), "--prompts", str(tmp_path / "prompts.txt")]
    assert cli.main([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [1.0] * 5
    assert f"{folder}: 2 left out, not scored: ._1.png, notes.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("animated.png", lambda a, b: _saved(a, "PNG", save_all=True, append_images=[b]), "2 frames"),
        ("animated.gif", lambda a, b: _saved(a, "GIF", save_all=True, append_images=[b]), "2 frames"),
        ("animated.webp", lambda a, b: _saved(a, "WEBP", save_all=True, append_images=[b]), "2 frames"),
        ("pages.tif", lambda a, b: _saved(a, "TIFF", save_all=True, append_images=[b]), "2 frames"),
        ("float.tif", lambda a, _: _saved(a.convert("F"), "TIFF"), "values of the kind F"),
        ("int.tif", lambda a, _: _saved(a.convert("I"), "TIFF"), "values of the kind I"),
        ("postscript.png", lambda a, _: _saved(a, "EPS"), "none of PNG"),
        ("empty.png", lambda a, _: b"", "none of PNG"),
        ("no_pixels.png", lambda a, _: _png(np.zeros((2, 2, 1), int), 0, 8).replace(b"IDAT", b"XXXX"), "'XXXX' is damaged"),
        (
            "keyed16.png",
            lambda a, _: _png(np.zeros((2, 2, 3), int), 2, 16, _chunk(b"tRNS", bytes(6))),
            "16 bits a channel with a transparent colour",
        ),
    ],
)
def test_what_has_no_single_appearance_is_refused_by_name(name: str, make: Callable, says: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    both = [Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(2)]
    (tmp_path / name).write_bytes(make(*both))
    with pytest.raises(InputError, match=rf"{name}: not a readable picture \(.*{says}") as refused:
        pictures.read(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_all_broken_pictures_are_counted_before_any_is_scored(scratch: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(scratch)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    for number in (1, 3, 4):
        (folder / f"{number}.png").write_bytes(b"GIF89a")
    assert _score(folder, tmp_path / "out.jsonl") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "1.png: not a readable picture" in said and "(and 2 more like it)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prompts.txt"]
