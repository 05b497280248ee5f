"""Pictures with their prompts, from GenEval's layout or from a flat folder with a file of prompts.

- **GenEval's layout**: `00000/metadata.jsonl` (one JSON line) and `00000/samples/0000.png`, ...; the folder's number is the
  prompt's line. A file of prompts, where one is given, stands for the metadata: folder 00000 is its first line.
- **Flat**: pictures right in the folder, and a file of prompts. Where its lines have a `file`, that names the picture, and no
  other picture is looked at. Otherwise the pictures, sorted by name with numbers by their value (2.png before 10.png), belong
  to the prompts in order, equally many to each: the first k to the first prompt.

A file of prompts is what star.prompts.record.read_foreign reads: `.txt`, one prompt a line, or JSON lines with a `prompt`.
Hidden files, whose names begin with a dot, are no pictures.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from star.errors import InputError
from star.prompts import schema
from star.prompts.record import Line, Prompt, line_of, read_foreign
from star.prompts.text import read_text
from star.scoring.pictures import SUFFIXES


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
    folders = _folders(images)
    if folders and lines is None:
        return list(_in_layout(images, folders, [_metadata(folder) for folder in folders], task))
    if lines is None:
        raise InputError(
            f"{images}: no folders 00000, 00001, ... of pictures; make them with `star sample --out {images}`, "
            "or give the prompts of other pictures with --prompts FILE"
        )
    if not folders:
        return list(_flat(images, prompts, lines, task))
    if [int(folder.name) for folder in folders] != list(range(len(lines))):
        raise InputError(
            f"{prompts}: {len(lines)} prompts, which {images} has no folders 00000 to {len(lines) - 1:05d} for; "
            "give the file that the pictures were made from"
        )
    return list(_in_layout(images, folders, lines, task))


def left_out(images: Path, found: list[Sample], prompts: Path | None = None) -> list[str]:
    """The names of files that lie where pictures are looked for but are not among the pictures found, sorted."""
    folders = _folders(images)
    looked_in = [folder / "samples" for folder in folders] or [images]
    used = {_place(sample.path) for sample in found} | {_place(path) for path in [prompts] if path}
    others = [path for folder in looked_in for path in folder.iterdir() if not path.is_dir() and _place(path) not in used]
    if folders:  # and folders of pictures whose names are no numbers
        others += [path for path in images.iterdir() if (path / "samples").is_dir() and path not in folders]
    return sorted(path.relative_to(images).as_posix() for path in others)


def _place(path: Path) -> Path:
    """Where a file lies, without `..`; links stay what they are."""
    return Path(os.path.normpath(path.absolute()))


def _folders(images: Path) -> list[Path]:
    return sorted(path for path in images.glob("*") if path.is_dir() and re.fullmatch("[0-9]+", path.name))


def _record(line: Line, name: str, task: str) -> Prompt:
    return Prompt(line.id or name, task, line.tag or task, line.text, line.core or (), line.metadata)


def _metadata(folder: Path) -> Line:
    described = folder / "metadata.jsonl"
    text = read_text(described, "missing; every folder of pictures needs its prompt's metadata, or give --prompts FILE")
    again = "write it again with `star sample`"
    row = schema.parsed(text.strip("\ufeff \t\r\n"), str(described), f"one line of JSON; {again}")
    if not isinstance(row, dict) or "prompt" not in row:
        raise InputError(f"{described}: no `prompt` key; {again}")
    return line_of(row, f"{described}:1")


def _in_layout(images: Path, folders: list[Path], lines: list[Line], task: str) -> Iterator[Sample]:
    records = [_record(line, f"{task}-{folder.name}", task) for line, folder in zip(lines, folders, strict=True)]
    _refuse_shared_ids(lines, records)
    first: dict[tuple[str, int], str] = {}
    for folder, record in zip(folders, records, strict=True):
        found = sorted(path for path in (folder / "samples").glob("*.png") if not path.name.startswith("."))
        if not found:
            raise InputError(f"{folder / 'samples'}: no pictures (0000.png, ...); sample them again")
        for path in found:
            if not re.fullmatch("[0-9]+", path.stem):
                raise InputError(f"{path}: a picture's name is its number, as in 0000.png")
            number, name = int(path.stem), path.relative_to(images).as_posix()
            if (other := first.setdefault((record.id, number), name)) != name:
                raise InputError(f"{path}: is picture {number} of {record.id!r}, as {other} is; give each folder its own id")
            yield Sample(path, name, number, record)


def _refuse_shared_ids(lines: list[Line], records: list[Prompt]) -> None:
    """Pictures of one prompt share its id; two prompts never do."""
    first: dict[str, tuple[Line, Prompt]] = {}
    for line, record in zip(lines, records, strict=True):
        other, known = first.setdefault(record.id, (line, record))
        if known.text != record.text:
            raise InputError(
                f"{line.where}: id {record.id!r} is that of another prompt in {other.where}; give every prompt its own"
            )


def _flat(images: Path, prompts: Path, lines: list[Line], task: str) -> Iterator[Sample]:
    unnamed = [line for line in lines if line.file is None]
    if unnamed and len(unnamed) < len(lines):
        raise InputError(f"{unnamed[0].where}: no `file`, which other lines have; name every picture or none")
    paths = _in_order(images, prompts, lines) if unnamed else _named(images, lines)
    first: dict[str, int] = {}  # lines with one prompt are one prompt
    for number, line in enumerate(lines):
        first.setdefault(line.text, number)
    records = [_record(line, f"{task}-{first[line.text]:05d}", task) for line in lines]
    _refuse_shared_ids(lines, records)
    each = len(paths) // len(lines)
    seen: Counter = Counter()
    for place, path in enumerate(paths):
        record = records[place // each]
        name = path.relative_to(images) if path.is_relative_to(images) else path
        yield Sample(path, name.as_posix(), seen[record.id], record)
        seen[record.id] += 1


def _named(images: Path, lines: list[Line]) -> list[Path]:
    """The pictures that the lines name, by a path in the folder or an absolute one."""
    paths = []
    first: dict[Path, int] = {}
    for place, line in enumerate(lines):
        path = images / line.file
        if not _is_file(path):
            raise InputError(f"{line.where}: `file` names {path}, which is not there; correct the name")
        if (before := first.setdefault(_place(path), place)) != place:
            raise InputError(f"{line.where}: names a picture twice, {path} is in {lines[before].where} too; give one line each")
        inside = _place(path).is_relative_to(_place(images))
        paths.append(images / _place(path).relative_to(_place(images)) if inside else path)
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def _in_order(images: Path, prompts: Path, lines: list[Line]) -> list[Path]:
    """The pictures of the folder, sorted, equally many for every line."""
    found = [path for path in images.glob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    found = sorted((path for path in found if not path.is_dir()), key=_by_value)
    if not found:
        raise InputError(f"{images}: no pictures ({', '.join(SUFFIXES)}) in it; name the folder that holds them")
    if len(found) % len(lines):
        raise InputError(
            f"{images}: {len(found)} pictures cannot be shared evenly by the {len(lines)} prompts of {prompts}; "
            "name each line's picture with a key `file`"
        )
    return found


def _by_value(path: Path) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
