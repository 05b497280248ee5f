"""Stage: prompt records of a task and split, from the configuration's world or from a file of the user's own."""

from dataclasses import replace
from pathlib import Path

from star.config import SCORERS, SETS, Config, TaskSettings, require_task
from star.errors import InputError
from star.files import write_jsonl
from star.prompts.record import Prompt

SPLITS = ("train", "validation", "test", "global")


def records(config: Config, task: str, split: str) -> list[Prompt]:
    """The prompt records of a task.

    Raises InputError for a task or split that the configuration does not have, and when a published file cannot be had.
    """
    require_task(config, task)
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    prompts = config.tasks[task].prompts
    if split == "global" and prompts.set != "preference":
        raise InputError("--split global: only the set `preference` of the world `miniature` has prompts of global attributes")
    if own := getattr(prompts, split, None):
        from star.prompts import own as of_user

        return _of_task(of_user.records(Path(own), kind(config.tasks[task])), task)
    if prompts.set is None:
        raise InputError(f"tasks.{task}.prompts.{split}: no file; name one, or the `set` that has the split")
    return _of_task(_of_set(config, prompts.set, split), task)


def kind(task: TaskSettings) -> str:
    """What the records of a task have, and what their ids begin with: geneval (metadata), ocr (a quoted target), pickscore.

    By the set, or without one by the scorers of reward and report.
    """
    sets = {name: scorer for names in SETS.values() for name, scorer in zip(names, SCORERS, strict=True)}
    if task.prompts.set is not None:
        return sets[task.prompts.set]
    scorers = {*task.reward, *task.report}
    return next((scorer for scorer in ("geneval", "ocr") if scorer in scorers), "pickscore")


def _of_task(prompts: list[Prompt], task: str) -> list[Prompt]:
    return [replace(prompt, task=task) for prompt in prompts]


def _of_set(config: Config, name: str, split: str) -> list[Prompt]:
    if config.prompts.world == "miniature":
        from star.worlds.miniature import prompts as miniature

        return miniature.records(SCORERS[SETS["miniature"].index(name)], split)
    if name == "geneval":
        from star.worlds.coco import geneval

        return geneval.records(split)
    from star.worlds.coco import ocr, pickscore

    return {"ocr": ocr, "pickscore": pickscore}[name].records(split, config.prompts)


def write(config: Config, task: str, split: str, out: Path) -> int:
    """Write the prompt records of a task to `out`, atomically; returns how many. Raises InputError as `records`."""
    lines = [record.as_dict() for record in records(config, task, split)]
    write_jsonl(out, lines)
    return len(lines)
