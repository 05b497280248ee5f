"""Pictures as a person sees them: any file of a known format becomes uint8 [H, W, 3], or is refused by name.

- What is transparent shows white, whether by an alpha channel, a palette or a colour that stands for "nothing here".
- 16 bits a channel become 8 by their upper byte; grey, palette, bilevel, CMYK and YCbCr pictures become RGB.
- EXIF's orientation is applied. Colour profiles are not, as no scorer's authors apply them.
- Refused: what has several frames or pages, numbers without a defined appearance (32 bits, floating point, LAB), a 16-bit
  colour picture with a transparent colour, files that are torn or damaged, and formats other than FORMATS.
"""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from star.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PNG = b"\x89PNG\r\n\x1a\n"
_UNSEEN = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks that show nothing, and that Pillow refuses when they are large
_GREY_BITS = {"1": 1, "L;2": 2, "L;4": 4}  # of a PNG's grey values, by Pillow's name of the layout; others have 8
_THREADS = 4


def read(path: Path) -> np.ndarray:
    """A picture as a viewer shows it on white, uint8 [H, W, 3]. Raises InputError, in one line, when there is none to show."""
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(_without_text(data)), formats=FORMATS) as picture:
            return _as_seen(picture)
    except UnidentifiedImageError:
        why = f"none of {', '.join(FORMATS)}, or damaged at its beginning"
    except Exception as error:  # on damaged files Pillow raises whatever its parsers stumble over
        why = " ".join(str(error).split()) or type(error).__name__
    raise InputError(f"{path}: not a readable picture ({why}); make it again")


def check(paths: Sequence[Path]) -> None:
    """Read every picture; raise InputError, naming the first that cannot be read and how many more there are."""
    with ThreadPoolExecutor(_THREADS) as threads:
        faults = [fault for fault in threads.map(_fault, paths) if fault is not None]
    if faults:
        raise InputError(faults[0] + (f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""))


def _fault(path: Path) -> str | None:
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


def _without_text(data: bytes) -> bytes:
    """A PNG without what shows nothing; other data as it is. Raises ValueError where chunks are torn or their sums wrong."""
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        chunk = data[start : start + 12 + length]
        start += 12 + length
        if kind in _UNSEEN:
            continue
        if len(chunk) < 12 + length or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise ValueError(f"chunk {kind.decode('latin-1')!r} is damaged")
        kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
    raise ValueError("the file ends too early")


def _as_seen(picture: Image.Image) -> np.ndarray:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a camera's MPO is one picture with previews
        raise ValueError(f"{frames} frames or pages, of which only one could be scored")
    layout = picture.tile[0].args if picture.tile else ""
    layout = layout if isinstance(layout, str) else str(layout[0]) if layout else ""
    picture.load()
    key = _transparent_color(picture, layout)
    picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode in ("RGBA", "RGBa", "LA", "La", "P", "PA"):
        return _on_white(picture.convert("RGBA"))
    if mode.startswith("I;16"):
        if not re.fullmatch("I;16[BLN]?", layout or mode):
            raise ValueError(f"grey values of the layout {layout}")
        values = np.asarray(picture).astype(np.uint16)
        return _keyed((values >> 8).astype(np.uint8)[..., None].repeat(3, -1), values[..., None], key)
    if mode in ("1", "L"):
        values = np.asarray(picture.convert("L"))[..., None]
        return _keyed(values.repeat(3, -1), values, key)
    if mode == "RGB":
        values = np.array(picture)
        return _keyed(values, values, key)
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return np.array(picture.convert("RGB"))
    raise ValueError(f"values of the kind {mode}, which have no defined appearance")


def _transparent_color(picture: Image.Image, layout: str) -> int | tuple | None:
    """The colour that stands for transparency, in the values that Pillow loads; None where there is none.

    Raises ValueError for 16 bits a channel, of which Pillow loads only the upper byte.
    """
    key = picture.info.get("transparency")
    if key is None or picture.mode not in ("1", "L", "I;16", "RGB"):
        return None
    if picture.mode == "RGB" and layout.endswith("16B"):
        raise ValueError("16 bits a channel with a transparent colour; save it with an alpha channel, or with 8 bits")
    if layout in _GREY_BITS:
        highest = 2 ** _GREY_BITS[layout] - 1
        return (key & highest) * 255 // highest
    return key


def _keyed(rgb_HW3: np.ndarray, values_HWC: np.ndarray, key: int | tuple | None) -> np.ndarray:
    """The picture with white where its values are `key`."""
    if key is None:
        return rgb_HW3
    nothing_HW1 = (values_HWC == np.asarray(key)).all(-1, keepdims=True)
    return np.where(nothing_HW1, np.uint8(255), rgb_HW3)


def _on_white(rgba: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", rgba.size, "white")
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
