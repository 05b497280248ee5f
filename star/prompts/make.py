"""Stage: prompt records of a task and split, from the configuration's world or from a file of the user's own."""

from pathlib import Path

from star.config import Config
from star.errors import InputError
from star.files import write_jsonl
from star.prompts.record import Prompt

SPLITS = ("train", "validation", "test", "global")


def records(config: Config, task: str, split: str) -> list[Prompt]:
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
    lines = [record.as_dict() for record in records(config, task, split)]
    write_jsonl(out, lines)
    return len(lines)
