"""Prompts as records: one frozen type, one reader, one writer of the JSON lines in which they travel between the stages.

A line is `{"id", "task", "tag", "prompt", "core", "metadata"}`; `core` is a list of spans, `metadata` is in GenEval's official
form (arXiv 2310.11513), and the line's number names the prompt's image folder.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from star.errors import InputError

KEYS = ("id", "task", "tag", "prompt", "core", "metadata")


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


def read(path: Path) -> list[Prompt]:
    """The prompt records of a file. Raises InputError, naming file and line, when it is missing, empty or malformed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt file; write one with `star prompts`") from None
    prompts = []
    lines = text.removesuffix("\n").split("\n") if text else []  # prompts may hold what splitlines takes for a line's end
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not a JSON object: {error.msg}") from None
        missing = [k for k in KEYS if not isinstance(record, dict) or k not in record]
        if missing:
            raise InputError(f"{path}:{number}: no key `{missing[0]}`; a prompt record has {', '.join(KEYS)}")
        spans = tuple(Span(**span) for span in record["core"])
        prompts.append(Prompt(record["id"], record["task"], record["tag"], record["prompt"], spans, record["metadata"]))
    if not prompts:
        raise InputError(f"{path}: no prompts in it; write them with `star prompts`")
    return prompts
