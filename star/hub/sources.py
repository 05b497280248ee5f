"""What a configuration takes from outside this repository: models, published prompt files, EasyOCR's weights."""

from collections.abc import Iterator
from typing import NamedTuple

from star.config import Config
from star.scoring.scorer import needed
from star.worlds.door import PromptFile, own_detector, set_of, world


class Model(NamedTuple):
    """What a key of the configuration names, and what must be in it: model, tokenizer, images (their processor), pipeline."""

    key: str
    source: str
    revision: str | None
    parts: tuple[str, ...]


def models(config: Config) -> Iterator[Model]:
    """Every model that the configuration's policy, tasks, rewards and guards load by `from_pretrained`."""
    policy, scorers = config.policy, config.scorers
    yield Model("policy.model", policy.model, policy.revision, ("pipeline",))
    if "geneval" in needed(config) and not own_detector(scorers.detector):
        if scorers.detector == "mask2former":
            yield Model("scorers.detector_model", scorers.detector_model, scorers.detector_revision, ("model", "images"))
        yield Model("scorers.color_model", scorers.color_model, scorers.color_revision, ("model", "tokenizer", "images"))
    yield Model("scorers.pickscore_model", scorers.pickscore_model, scorers.pickscore_revision, ("model",))
    processor = (scorers.pickscore_processor, scorers.pickscore_processor_revision)
    yield Model("scorers.pickscore_processor", *processor, ("tokenizer", "images"))


def published_prompts(config: Config) -> list[PromptFile]:
    """The published files that the tasks take prompts from, each once; validation prompts come from the training file."""
    origin, files = world(config.prompts.world), {}
    for task in config.tasks:
        for split in ("train", "test"):
            if split not in config.prompts.files.get(task, {}):
                files |= {file.name: file for file in origin.files(set_of(config, task), split, config.prompts)}
    return list(files.values())


def reads_with_easyocr(config: Config) -> bool:
    """Whether EasyOCR reads pictures."""
    return "ocr" in needed(config) and config.scorers.ocr_engine == "easyocr"
