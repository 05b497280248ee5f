"""What a configuration takes from outside this repository: models, published prompt files, EasyOCR's weights."""

from collections.abc import Iterator
from typing import NamedTuple

from star.config import Config
from star.scoring.scorer import needed


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
    if "geneval" in needed(config) and scorers.detector != "miniature":
        if scorers.detector == "mask2former":
            yield Model("scorers.detector_model", scorers.detector_model, scorers.detector_revision, ("model", "images"))
        yield Model("scorers.color_model", scorers.color_model, scorers.color_revision, ("model", "tokenizer", "images"))
    yield Model("scorers.pickscore_model", scorers.pickscore_model, scorers.pickscore_revision, ("model",))
    processor = (scorers.pickscore_processor, scorers.pickscore_processor_revision)
    yield Model("scorers.pickscore_processor", *processor, ("tokenizer", "images"))


def published_prompts(config: Config) -> list[tuple[str, str]]:
    """(task, file) of the prompts that the tasks take from their publication."""
    if config.prompts.world != "coco":
        return []
    tasks = [t for t in config.tasks if t == "pickscore" or (t == "ocr" and config.prompts.ocr == "published")]
    splits = {task: [s for s in ("train", "test") if s not in config.prompts.files.get(task, {})] for task in tasks}
    return [(task, f"dataset/{task}/{split}.txt") for task in tasks for split in splits[task]]


def reads_with_easyocr(config: Config) -> bool:
    """Whether EasyOCR reads pictures."""
    return "ocr" in needed(config) and config.scorers.ocr_engine == "easyocr"
