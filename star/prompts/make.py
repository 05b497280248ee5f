"""Stage: prompt records of a task and split, from the configuration's world or from a file of the user's own."""

import json
import os
from dataclasses import replace
from pathlib import Path

from star.config import Config
from star.errors import InputError
from star.prompts import own
from star.prompts.record import Prompt
from star.worlds.door import set_of, world

SPLITS = ("train", "validation", "test", "global")


def records(config: Config, task: str, split: str) -> list[Prompt]:
    """The prompt records of a task.

    Raises InputError for a task or split that the configuration does not have, and when a published file cannot be had.
    """
    if task not in config.tasks:
        raise InputError(f"tasks: no `{task}` in the configuration; it has {', '.join(config.tasks)}")
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    prompt_set, origin = set_of(config, task), world(config.prompts.world)
    if split not in origin.splits(prompt_set):
        known = ", ".join(origin.splits(prompt_set))
        raise InputError(f"--split {split}: the prompt set `{prompt_set}` of {config.prompts.world} has only {known}")
    if file := config.prompts.files.get(task, {}).get(split):
        return own.records(Path(file), task, {task})
    return [replace(record, task=task) for record in origin.records(prompt_set, split, config.prompts)]


def write(config: Config, task: str, split: str, out: Path) -> int:
    """Write the prompt records of a task to `out`, atomically; returns how many. Raises InputError as `records`."""
    lines = [json.dumps(record.as_dict(), ensure_ascii=False) + "\n" for record in records(config, task, split)]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(out)
    return len(lines)
