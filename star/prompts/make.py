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


def fixed(config: Config, task: str, count: int) -> list[Prompt]:
    """`count` prompts to look at while training, spread evenly over the validation prompts; fewer where there are fewer.

    They are training prompts where the task has files of its own and none for validation. Raises InputError as `records`.
    """
    own = config.tasks[task].prompts
    held_out = own.set is not None or own.validation is not None
    found = records(config, task, "validation" if held_out else "train")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def write(config: Config, task: str, split: str, out: Path) -> int:
    """Write the prompt records of a task to `out`, atomically; returns how many. Raises InputError as `records`."""
    lines = [record.as_dict() for record in records(config, task, split)]
    write_jsonl(out, lines)
    return len(lines)
