"""What a configuration takes from outside this repository: models, packages' weights, published prompt files.

Each model and scorer names its own sources; here they are collected.
"""

from collections.abc import Iterator

from star.config import Config
from star.hub.check import Package, Source
from star.models.sources import base
from star.scoring.scorer import needed
from star.scoring.sources import of_scorer
from star.worlds.door import PromptFile, world


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


def published_prompts(config: Config) -> list[PromptFile]:
    """The published files that the tasks take prompts from, each once; validation prompts come from the training file."""
    origin, files = world(config.prompts.world), {}
    for prompts in (task.prompts for task in config.tasks.values()):
        for split in ("train", "test"):
            if prompts.set is not None and getattr(prompts, split) is None:
                files |= {file.name: file for file in origin.files(prompts.set, split, config.prompts)}
    return list(files.values())
