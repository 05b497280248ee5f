"""Prompts as records: one frozen type, one reader, one writer of the JSON lines in which they travel between the stages.

A record's line is `{"id", "task", "tag", "prompt", "core", "metadata"}`; `core` is a list of spans, `metadata` is in GenEval's
official form (arXiv 2310.11513), and the line's number names the prompt's image folder. Files of others say less: a prompt a
line (.txt), JSON lines with `prompt`, one JSON array, or GenEval's own metadata. star.prompts.schema says what fits.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from star.errors import InputError
from star.prompts import schema
from star.prompts.text import lines_of, read_text, readable

KEYS = ("id", "task", "tag", "prompt", "core", "metadata")
_NOT_GENEVALS = ("id", "task", "core", "file", "metadata")  # keys of a line that are the project's
_BETWEEN = re.compile(r"[\s,]*")  # what stands between the items of an array
_PLAIN = "a prompt a line (.txt), or JSON lines with `prompt`"


@dataclass(frozen=True)
class Span:
    """A part of a prompt that its picture must show: text[start:end]. Kinds: object, attribute, count, relation, text."""

    text: str
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Prompt:
    """A prompt: `id` names its noise, `tag` its kind in tables, `core` its core content, `metadata` what scorers judge by."""

    id: str
    task: str
    tag: str
    text: str
    core: tuple[Span, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The prompt under the keys of its JSON line; also what a user's own reward function is given."""
        return {
            "id": self.id,
            "task": self.task,
            "tag": self.tag,
            "prompt": self.text,
            "core": [asdict(span) for span in self.core],
            "metadata": self.metadata,
        }


class Line(NamedTuple):
    """What a line of somebody's prompt file says, checked; None for what it does not say. `where` is file:line.

    `metadata` is the line's own, or the line itself where it is GenEval's.
    """

    where: str
    text: str
    id: str | None
    tag: str | None
    file: str | None
    core: tuple[Span, ...] | None
    metadata: dict[str, Any]


def read(path: Path) -> list[Prompt]:
    """The prompt records of a file. Raises InputError, naming file and line, when it is missing, empty or malformed."""
    text = read_text(path, "no such prompt file; write one with `star prompts`")
    prompts = []
    for where, record in json_lines(path, text, "a JSON object"):
        for key in KEYS:
            if not isinstance(record, dict) or key not in record:
                raise InputError(f"{where}: no key `{key}`; a prompt record has {', '.join(KEYS)}")
        checked = schema.line(record, where)
        core = tuple(Span(**span) for span in checked["core"])
        prompts.append(Prompt(checked["id"], checked["task"], checked["tag"], checked["prompt"], core, checked["metadata"]))
    if not prompts:
        raise InputError(f"{path}: no prompts in it; write them with `star prompts`")
    refuse_repeated_ids(path, prompts)
    return prompts


def read_foreign(path: Path) -> list[Line]:
    """The lines of a prompt file of any maker. Raises InputError, naming file, line and key, for what does not fit."""
    text = read_text(path, f"no such file of prompts; give {_PLAIN}")
    if path.suffix.lower() == ".txt":
        rows: Iterable = ((f"{path}:{n}", {"prompt": line.strip()}) for n, line in enumerate(lines_of(text), start=1))
    else:
        rows = json_lines(path, text, "JSON; a file of plain prompts ends in .txt")
    lines = [line_of(row, where) for where, row in rows]
    if not lines:
        raise InputError(f"{path}: no prompts in it; give {_PLAIN}")
    return lines


def line_of(row: Any, where: str) -> Line:
    """A line of a prompt file, which `where` names. Raises InputError, naming the key, for what does not fit.

    Its text is composed (NFC) and loses what nobody sees, unless core spans count its characters.
    """
    row = schema.line(row, where)
    spans = tuple(Span(**span) for span in row["core"]) if "core" in row else None
    text = readable(row["prompt"]) if spans is None else row["prompt"]
    metadata = row.get("metadata", {key: value for key, value in row.items() if key not in _NOT_GENEVALS})
    if "prompt" in metadata:
        metadata = metadata | {"prompt": text}
    return Line(where, text, row.get("id"), row.get("tag", metadata.get("tag")), row.get("file"), spans, metadata)


def refuse_repeated_ids(path: Path, prompts: list[Prompt]) -> None:
    """Raise InputError where two prompts of a file have one id."""
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        if (other := first.setdefault(prompt.id, number)) != number:
            raise InputError(
                f"{path}: prompts {other} and {number} have the same id {prompt.id!r}; "
                "ids say which noise belongs to which prompt"
            )


def json_lines(path: Path, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of JSON lines, or of the items of one JSON array. Raises InputError: not what was `expected`."""
    if text.lstrip("\ufeff \t\r\n").startswith("["):
        yield from _array(path, text.lstrip("\ufeff"))
        return
    for number, line in enumerate(lines_of(text), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            raise InputError(f"{where}: an empty line; delete it")
        yield where, schema.parsed(line, where, expected)


def _array(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The items of a JSON array, each with the line where it begins."""
    items = schema.parsed(text, f"{path}:1", "a JSON array, though it begins like one")
    decoder, line, seen, at = json.JSONDecoder(), 1, 0, text.index("[") + 1
    for item in items:
        at = _BETWEEN.match(text, at).end()
        line, seen = line + text.count("\n", seen, at), at
        yield f"{path}:{line}", item
        at = decoder.raw_decode(text, at)[1]
