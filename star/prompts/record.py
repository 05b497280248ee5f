"""Stage: prompt records, one JSON object a line.

A record is `{"id", "task", "tag", "prompt", "core", "metadata"}`; `core` is the list of spans of star.prompts.core,
`metadata` is in GenEval's official form (arXiv 2310.11513), and the line's number names the prompt's image folder.
"""

import json
import os
from pathlib import Path

from star.config import Config
from star.errors import InputError

SPLITS = ("train", "validation", "test", "global")
KEYS = ("id", "task", "tag", "prompt", "core", "metadata")


def records(config: Config, task: str, split: str) -> list[dict]:
    """The prompt records of a task.

    Raises InputError for a task or split that the configuration does not have, and when a published file cannot be had.
    """
    if task not in config.tasks:
        raise InputError(f"tasks: no `{task}` in the configuration; it has {', '.join(config.tasks)}")
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    if split == "global" and (task, config.prompts.world) != ("pickscore", "miniature"):
        raise InputError("--split global: only the pickscore task of the world `miniature` has prompts of global attributes")
    if own := config.prompts.files.get(task, {}).get(split):
        from star.prompts import own as of_user

        return of_user.records(Path(own), task)
    if config.prompts.world == "miniature":
        from star.worlds.miniature import prompts as miniature

        return miniature.records(task, split)
    if task == "geneval":
        from star.worlds.coco import geneval

        return geneval.records(split)
    from star.worlds.coco import ocr, pickscore

    return {"ocr": ocr, "pickscore": pickscore}[task].records(split, config.prompts)


def write(config: Config, task: str, split: str, out: Path) -> int:
    """Write the prompt records of a task to `out`, atomically; returns how many. Raises InputError as `records`."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records(config, task, split)]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(out)
    return len(lines)


def read(path: Path) -> list[dict]:
    """The prompt records of a file. Raises InputError, naming file and line, when it is missing, empty or malformed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt file; write one with `star prompts`") from None
    found = []
    lines = text.removesuffix("\n").split("\n") if text else []  # prompts may hold what splitlines takes for a line's end
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not a JSON object: {error.msg}") from None
        missing = [k for k in KEYS if not isinstance(record, dict) or k not in record]
        if missing:
            raise InputError(f"{path}:{number}: no key `{missing[0]}`; a prompt record has {', '.join(KEYS)}")
        found.append(record)
    if not found:
        raise InputError(f"{path}: no prompts in it; write them with `star prompts`")
    return found
