"""Text as a person reads it: encodings and line ends of files, letters that can be written in two ways. Source: ours."""

import codecs
import re
import unicodedata
from pathlib import Path

from star.errors import InputError

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")  # and nothing else that Unicode calls a line's end: prompts hold U+2028 and the like
# Controls, soft hyphen, zero-width space, word joiner, direction marks, byte order mark; not the joiners of emoji and Persian.
_UNSEEN = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_SELECTORS = re.compile("[\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʼ`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "⁄": "/",
    }
)


def read_text(path: Path, missing: str) -> str:
    """The text of a file without its byte order mark: UTF-8, or what the mark says.

    Raises InputError, naming the file, where it cannot be read as text; `missing` says what to do where there is none.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {encoding.upper()} text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: a NUL character, as in UTF-16 without a mark; save the file as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a file, whatever system wrote it; empty ones at the end do not count."""
    lines = [line.lstrip("\ufeff") for line in _LINE_END.split(text)]  # files that were joined have marks in the middle
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def readable(text: str) -> str:
    """The text with its letters composed (NFC) and of usual width, and without what nobody sees; everything else stays.

    Of usual width are the letters and digits that East Asian fonts also have wide or narrow; punctuation keeps its width there.
    """
    return unicodedata.normalize("NFC", "".join(map(_of_usual_width, _UNSEEN.sub("", text))))


def _of_usual_width(letter: str) -> str:
    wide = unicodedata.decomposition(letter).startswith(("<wide>", "<narrow>"))
    return unicodedata.normalize("NFKC", letter) if wide and unicodedata.category(letter)[0] in "LNM" else letter


def plain(text: str) -> str:
    """What two writings of one text share: no spaces, case, widths (NFKC), invisible characters, forms of quotes and dashes."""
    text = unicodedata.normalize("NFKC", text.translate(_SAME)).lower()
    text = unicodedata.normalize("NFKC", text).translate(_SAME)
    seen = (c for c in _SELECTORS.sub("", text) if unicodedata.category(c) not in ("Cf", "Cc"))
    return "".join("".join(seen).split())
