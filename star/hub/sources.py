"""What a configuration takes from outside this repository: models, packages' weights, published prompt files.

Each model and scorer names its own sources; here they are collected.
"""

from collections.abc import Iterator

from star.config import Config
from star.hub.check import Package, Source
from star.models.sources import base
from star.scoring.scorer import needed
from star.scoring.sources import of_scorer


def _all(config: Config) -> Iterator[Source | Package]:
    yield base(config.policy)
    for name in sorted(needed(config)):
        yield from of_scorer(name, config.scorers)


def sources(config: Config) -> list[Source]:
    """Every model that the configuration's policy, tasks, rewards and guards load by `from_pretrained`."""
    return [source for source in _all(config) if isinstance(source, Source)]


def packages(config: Config) -> list[Package]:
    """The weights of the configuration's scorers that come another way."""
    return [source for source in _all(config) if isinstance(source, Package)]


def published_prompts(config: Config) -> list[tuple[str, str]]:
    """(task, file) of the prompts that the tasks take from their publication."""
    if config.prompts.world != "coco":
        return []
    tasks = [t for t in config.tasks if t == "pickscore" or (t == "ocr" and config.prompts.ocr == "published")]
    splits = {task: [s for s in ("train", "test") if s not in config.prompts.files.get(task, {})] for task in tasks}
    return [(task, f"dataset/{task}/{split}.txt") for task in tasks for split in splits[task]]
