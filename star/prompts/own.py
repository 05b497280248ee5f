"""Prompts of the user's own, from a file: one prompt a line (.txt), or JSON lines (.jsonl) with `prompt` and more.

A line may also have `id`, `tag`, `metadata` (GenEval's form, for the geneval task) and `core`. What is missing is made: core
content from the metadata (geneval), the quoted text (ocr) or the content words.
"""

import json
from pathlib import Path

from star.errors import InputError
from star.prompts import core
from star.prompts.record import Prompt, Span


def records(path: Path, task: str) -> list[Prompt]:
    """The prompt records of a file. Raises InputError, naming file and line, for what does not fit the task."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error}); tasks.<name>.prompts names it") from None
    found = [_record(line, f"{path}:{number}", task, number - 1, path.suffix) for number, line in enumerate(lines, start=1)]
    if len({record.id for record in found}) < len(found):
        raise InputError(f"{path}: two prompts have the same id; ids say which noise belongs to which prompt")
    return found


def _record(line: str, where: str, task: str, number: int, suffix: str) -> Prompt:
    try:
        given = {"prompt": line} if suffix == ".txt" else json.loads(line)
    except json.JSONDecodeError:
        raise InputError(f"{where}: not JSON; a file of plain prompts ends in .txt") from None
    prompt = given.get("prompt") if isinstance(given, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: no prompt; every line needs one")
    tag = given.get("tag", task)
    metadata = {"tag": tag, **given.get("metadata", {}), "prompt": prompt}
    if task == "geneval" and not metadata.get("include"):
        raise InputError(f"{where}: no `metadata.include`; geneval must know which objects to look for")
    try:
        spans = tuple(Span(**span) for span in given["core"]) if "core" in given else _core(task, prompt, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Prompt(given.get("id", f"{task}-{number:05d}"), task, tag, prompt, spans, metadata)


def _core(task: str, prompt: str, metadata: dict) -> tuple[Span, ...]:
    if task == "geneval":
        return core.described(prompt, metadata["include"])
    return core.quoted(prompt) if task == "ocr" else core.content_words(prompt)
