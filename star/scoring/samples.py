"""Pictures with their prompts, from GenEval's layout or from a flat folder with a file of prompts.

- **GenEval's layout**: `00000/metadata.jsonl` (one JSON line) and `00000/samples/0000.png`, ...; the folder's number is the
  prompt's line. A file of prompts, where one is given, stands for the metadata: folder 00000 is its first line.
- **Flat**: pictures right in the folder, and a file of prompts. Where its lines have a `file`, that names the picture, and no
  other picture is looked at. Otherwise the pictures, sorted by name with numbers by their value (2.png before 10.png), belong
  to the prompts in order, equally many to each: the first k to the first prompt.

A file of prompts is `.txt`, one prompt a line, or JSON lines (or one JSON array) of objects with a `prompt`: prompt records, or
GenEval's metadata. Hidden files, whose names begin with a dot, are no pictures.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from star.errors import InputError
from star.prompts.record import Prompt
from star.scoring.pictures import SUFFIXES

_OURS = ("id", "task", "core", "file")  # keys of a metadata line that are the project's, not GenEval's


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
    lines = None if prompts is None else _prompts(prompts)
    if folders := _folders(images):
        found = list(_in_layout(images, folders, task, prompts, lines))
    elif lines is None:
        raise InputError(
            f"{images}: no folders 00000, 00001, ... of pictures; make them with `star sample --out {images}`, "
            "or give the prompts of other pictures with --prompts FILE"
        )
    else:
        found = list(_flat(images, task, prompts, lines))
    _check_ids(found, prompts or images)
    return found


def left_out(images: Path, found: list[Sample], prompts: Path | None = None) -> list[str]:
    """The names of files that lie where pictures are looked for but are not among the pictures found, sorted."""
    looked_in = [folder / "samples" for folder in _folders(images)] or [images]
    present = [path for folder in looked_in for path in folder.iterdir() if not path.is_dir()]
    used = {_place(sample.path) for sample in found} | {_place(path) for path in [prompts] if path}
    others = [path for path in present if _place(path) not in used]
    if looked_in != [images]:  # folders of pictures whose names are no numbers
        others += [path for path in images.iterdir() if (path / "samples").is_dir() and path not in _folders(images)]
    return sorted(path.relative_to(images).as_posix() for path in others)


def read_rows(path: Path, kind: str) -> list[tuple[int, object]]:
    """(line, value) of a file of JSON lines, without its empty lines, or (place, value) of a file that is one JSON array.

    Raises InputError, naming file and line, when it cannot be read; `kind` says what the file should be.
    """
    text = _text(path, kind)
    if text.lstrip().startswith("["):
        try:
            return list(enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError):
            pass  # lines, the first of them an array: the caller names what it is not
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 in a prompt
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise InputError(f"{path}:{number}: not JSON ({why}); {kind}") from None
    return rows


def _text(path: Path, kind: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {kind}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); {kind}") from None


def _place(path: Path) -> Path:
    """Where a file lies, without `..`; links stay what they are."""
    return Path(os.path.normpath(path.absolute()))


def _folders(images: Path) -> list[Path]:
    return sorted(path for path in images.glob("*") if path.is_dir() and re.fullmatch("[0-9]+", path.name))


def _check_ids(found: list[Sample], where: Path) -> None:
    """An id names one prompt, and with a number one picture: diversity, resuming and tables go by it."""
    text: dict[str, str] = {}
    names: dict[tuple[str, int], str] = {}
    for sample in found:
        record = sample.record
        if (first := text.setdefault(record.id, record.text)) != record.text:
            raise InputError(
                f"{where}: the id {record.id!r} names two prompts, {first!r} and {record.text!r}; give each prompt its own id"
            )
        if (other := names.setdefault((record.id, sample.number), sample.name)) != sample.name:
            raise InputError(
                f"{where}: {other} and {sample.name} are both picture {sample.number} of the id {record.id!r}; "
                "give each folder its own id"
            )


def _record(line: dict, name: str, task: str) -> Prompt:
    described = line.get("metadata", line)
    metadata = {key: value for key, value in described.items() if key not in _OURS}
    return Prompt(line.get("id", name), task, line.get("tag", task), line["prompt"], metadata=metadata)


def _checked(line: object, where: str, remedy: str) -> dict:
    """A line that has a prompt, and of the right type what else is read of it. Raises InputError."""
    prompt = line.get("prompt") if isinstance(line, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: no `prompt`; {remedy}")
    for key, kind in (("metadata", dict), ("file", str), ("id", str), ("tag", str)):
        if not isinstance(line.get(key, kind()), kind):
            raise InputError(f"{where}: `{key}` is not {'an object' if kind is dict else 'text'}; correct the line")
    return line


def _prompts(file: Path) -> list[tuple[int, dict]]:
    """The lines of a file of prompts with their numbers."""
    kind = "one prompt a line (.txt), or JSON lines with `prompt`"
    if file.suffix == ".txt":
        lines = _text(file, kind).rstrip("\r\n").split("\n")
        rows = [(number, {"prompt": line.rstrip("\r")}) for number, line in enumerate(lines, start=1)]
    else:
        rows = read_rows(file, "a file of plain prompts ends in .txt")
    if not rows:
        raise InputError(f"{file}: no prompts in it; {kind}")
    return [(number, _checked(line, f"{file}:{number}", "every line needs one")) for number, line in rows]


def _metadata(folder: Path) -> dict:
    described = folder / "metadata.jsonl"
    if not described.exists():
        raise InputError(f"{described}: missing; every folder of pictures needs its prompt's metadata, or give --prompts FILE")
    again = "write it again with `star sample`"
    rows = read_rows(described, again)
    if len(rows) != 1:
        raise InputError(f"{described}: not one line of JSON; {again}")
    return _checked(rows[0][1], str(described), again)


def _in_layout(
    images: Path, folders: list[Path], task: str, prompts: Path | None, lines: list[tuple[int, dict]] | None
) -> Iterator[Sample]:
    if lines is None:
        lines = [(1, _metadata(folder)) for folder in folders]
    elif [int(folder.name) for folder in folders] != list(range(len(lines))):
        raise InputError(
            f"{prompts}: {len(lines)} prompts, which {images} has no folders 00000 to {len(lines) - 1:05d} for; "
            "give the file that the pictures were made from"
        )
    for folder, (_, line) in zip(folders, lines, strict=True):
        record = _record(line, f"{task}-{folder.name}", task)
        found = sorted(path for path in (folder / "samples").glob("*.png") if not path.name.startswith("."))
        if not found:
            raise InputError(f"{folder / 'samples'}: no pictures (0000.png, ...); sample them again")
        for path in found:
            if not re.fullmatch("[0-9]+", path.stem):
                raise InputError(f"{path}: a picture's name is its number, as in 0000.png")
            yield Sample(path, path.relative_to(images).as_posix(), int(path.stem), record)


def _flat(images: Path, task: str, prompts: Path, lines: list[tuple[int, dict]]) -> Iterator[Sample]:
    named = ["file" in line for _, line in lines]
    if any(named) and not all(named):
        number, _ = lines[named.index(False)]
        raise InputError(f"{prompts}:{number}: no `file`, which other lines have; name every picture or none")
    paths = _named(images, prompts, lines) if all(named) else _in_order(images, prompts, lines)
    each = len(paths) // len(lines)
    first: dict[str, int] = {}  # lines with one prompt are one prompt
    for place, (_, line) in enumerate(lines):
        first.setdefault(line["prompt"], place)
    seen: Counter = Counter()
    for place, path in enumerate(paths):
        _, line = lines[place // each]
        record = _record(line, f"{task}-{first[line['prompt']]:05d}", task)
        name = path.relative_to(images) if path.is_relative_to(images) else path
        yield Sample(path, name.as_posix(), seen[record.id], record)
        seen[record.id] += 1


def _named(images: Path, prompts: Path, lines: list[tuple[int, dict]]) -> list[Path]:
    """The pictures that the lines name, by a path in the folder or an absolute one."""
    paths = []
    first: dict[Path, int] = {}
    for number, line in lines:
        path = images / line["file"]
        if not path.is_file():
            raise InputError(f"{prompts}:{number}: `file` names {path}, which is not there; correct the name")
        if (before := first.setdefault(_place(path), number)) != number:
            raise InputError(f"{prompts}:{number}: names a picture twice, {path} is in line {before} too; give one line each")
        if _place(path).is_relative_to(_place(images)):
            path = images / _place(path).relative_to(_place(images))
        paths.append(path)
    return paths


def _in_order(images: Path, prompts: Path, lines: list[tuple[int, dict]]) -> list[Path]:
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
