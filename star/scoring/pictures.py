"""Pictures and their prompts, from GenEval's layout or from a flat folder with a file of prompts.

- **GenEval's layout**: `00000/metadata.jsonl` (one JSON line) and `00000/samples/0000.png`, ...; the folder's number is the
  prompt's line. A file of prompts, where one is given, stands for the metadata: folder 00000 is its first line.
- **Flat**: pictures right in the folder, and a file of prompts. Where its lines have a `file`, that names the picture, and no
  other picture is looked at. Otherwise the pictures, sorted by name with numbers by their value (2.png before 10.png), belong
  to the prompts in order, equally many to each: the first k to the first prompt.

A file of prompts is what star.prompts.record.read_foreign reads: `.txt`, one prompt a line, or JSON lines with a `prompt`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from star.errors import InputError
from star.prompts import schema
from star.prompts.record import Line, Prompt, line_of, read_foreign
from star.prompts.text import read_text

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Sample(NamedTuple):
    """A picture of a prompt: its path, its name in score files, its number among the prompt's pictures, the record."""

    path: Path
    name: str
    number: int
    record: Prompt


def find(images: Path, task: str, prompts: Path | None = None) -> list[Sample]:
    """Every picture of `images` with its prompt. `task` is the tag and the id's beginning where prompts have none.

    Raises InputError, naming the file, when folder, metadata, prompts or pictures are missing, or do not fit each other.
    """
    lines = None if prompts is None else read_foreign(prompts)
    folders = sorted(p for p in images.glob("*") if p.is_dir() and p.name.isdigit())
    if folders:
        if lines is None:
            lines = [_metadata(folder) for folder in folders]
        else:
            if [int(folder.name) for folder in folders] != list(range(len(lines))):
                raise InputError(
                    f"{prompts}: {len(lines)} prompts, which {images} has no folders 00000 to {len(lines) - 1:05d} for; "
                    "give the file that the pictures were made from"
                )
        records = [_record(line, f"{task}-{folder.name}", task) for line, folder in zip(lines, folders, strict=True)]
        _refuse_shared_ids(lines, records)
        return [sample for folder, record in zip(folders, records, strict=True) for sample in _samples(images, folder, record)]
    if lines is None:
        raise InputError(
            f"{images}: no folders 00000, 00001, ... of pictures; make them with `star sample --out {images}`, "
            "or give the prompts of other pictures with --prompts FILE"
        )
    return list(_flat(images, task, prompts, lines))


def verify(path: Path) -> None:
    """Raise InputError when a file is not a whole picture."""
    with _opened(path) as picture:
        picture.verify() if picture.format == "PNG" else picture.load()  # only PNGs have checksums to go by


def read(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3], turned as its EXIF says. Raises InputError when it cannot be read."""
    with _opened(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise InputError(f"{path}: not a readable picture ({error}); make it again") from None


def _record(line: Line, name: str, task: str) -> Prompt:
    return Prompt(line.id or name, task, line.tag or task, line.text, line.core or (), line.metadata)


def _refuse_shared_ids(lines: list[Line], records: list[Prompt]) -> None:
    """Pictures of one prompt share its id; two prompts never do."""
    first: dict[str, tuple[Line, Prompt]] = {}
    for line, record in zip(lines, records, strict=True):
        other, known = first.setdefault(record.id, (line, record))
        if known.text != record.text:
            raise InputError(
                f"{line.where}: id {record.id!r} is that of another prompt in {other.where}; give every prompt its own"
            )


def _metadata(folder: Path) -> Line:
    described = folder / "metadata.jsonl"
    text = read_text(described, "missing; every folder of pictures needs its prompt's metadata, or give --prompts FILE")
    again = "write it again with `star sample`"
    row = schema.parsed(text.strip("\ufeff \t\r\n"), str(described), f"one line of JSON; {again}")
    if not isinstance(row, dict) or "prompt" not in row:
        raise InputError(f"{described}: no `prompt` key; {again}")
    return line_of(row, f"{described}:1")


def _samples(images: Path, folder: Path, record: Prompt) -> Iterator[Sample]:
    found = sorted((folder / "samples").glob("*.png"))
    if not found:
        raise InputError(f"{folder / 'samples'}: no pictures (0000.png, ...); sample them again")
    for path in found:
        if not path.stem.isdigit():
            raise InputError(f"{path}: a picture's name is its number, as in 0000.png")
        yield Sample(path, path.relative_to(images).as_posix(), int(path.stem), record)


def _by_value(path: Path) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _flat(images: Path, task: str, prompts: Path, lines: list[Line]) -> Iterator[Sample]:
    named = [line.file is not None for line in lines]
    if any(named):
        if not all(named):
            raise InputError(
                f"{lines[named.index(False)].where}: no `file`, which other lines have; name every picture or none"
            )
        pairs = [(images / line.file, line) for line in lines]
        for path, line in pairs:
            if not path.is_file():
                raise InputError(f"{line.where}: `file` names {path}, which is not there; correct the name")
        if len({path for path, _ in pairs}) < len(pairs):
            raise InputError(f"{prompts}: names a picture twice; give one line a picture")
    else:
        found = sorted((p for p in images.glob("*") if p.suffix.lower() in _SUFFIXES), key=_by_value)
        if not found:
            raise InputError(f"{images}: no pictures ({', '.join(_SUFFIXES)}) in it; name the folder that holds them")
        each, rest = divmod(len(found), len(lines))
        if rest or not each:
            raise InputError(
                f"{images}: {len(found)} pictures cannot be shared evenly by the {len(lines)} prompts of {prompts}; "
                "name each line's picture with a key `file`"
            )
        pairs = [(path, lines[i // each]) for i, path in enumerate(found)]
    first: dict[str, int] = {}  # lines with one prompt are one prompt
    for number, line in enumerate(lines):
        first.setdefault(line.text, number)
    records = [_record(line, f"{task}-{first[line.text]:05d}", task) for _, line in pairs]
    _refuse_shared_ids([line for _, line in pairs], records)
    seen: Counter = Counter()
    for (path, _), record in zip(pairs, records, strict=True):
        name = path.relative_to(images) if path.is_relative_to(images) else path  # `file` may be absolute
        yield Sample(path, name.as_posix(), seen[record.id], record)
        seen[record.id] += 1
