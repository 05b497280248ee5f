"""Stage: prompt records of a task and split, from the configuration's world or from a file of the user's own."""

from dataclasses import replace
from pathlib import Path

from star.config import Config, require_task
from star.errors import InputError
from star.files import write_jsonl
from star.prompts import own
from star.prompts.record import Prompt
from star.worlds.door import world

SPLITS = ("train", "validation", "test", "global")


def records(config: Config, task: str, split: str) -> list[Prompt]:
    """The prompt records of a task.

    Raises InputError for a task or split that the configuration does not have, and when a published file cannot be had.
    """
    require_task(config, task)
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    settings, origin = config.tasks[task], world(config.prompts.world)
    if file := getattr(settings.prompts, split, None):
        return own.records(Path(file), task, {*settings.reward, *settings.report})
    prompt_set = settings.prompts.set
    if prompt_set is None:
        raise InputError(f"tasks.{task}.prompts.{split}: no file; name one, or the `set` that has the split")
    if split not in origin.splits(prompt_set):
        known = ", ".join(origin.splits(prompt_set))
        raise InputError(f"--split {split}: the prompt set `{prompt_set}` of {config.prompts.world} has only {known}")
    return [replace(record, task=task) for record in origin.records(prompt_set, split, config.prompts)]


def write(config: Config, task: str, split: str, out: Path) -> int:
    """Write the prompt records of a task to `out`, atomically; returns how many. Raises InputError as `records`."""
    lines = [record.as_dict() for record in records(config, task, split)]
    write_jsonl(out, lines)
    return len(lines)
