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
    if "geneval" in needed(config) and scorers.geneval.detector != "miniature":
        if scorers.geneval.detector == "mask2former":
            yield Model("scorers.geneval.model", scorers.geneval.model, scorers.geneval.revision, ("model", "images"))
        yield Model(
            "scorers.geneval.color_model",
            scorers.geneval.color_model,
            scorers.geneval.color_revision,
            ("model", "tokenizer", "images"),
        )
    yield Model("scorers.pickscore.model", scorers.pickscore.model, scorers.pickscore.revision, ("model",))
    processor = (scorers.pickscore.processor, scorers.pickscore.processor_revision)
    yield Model("scorers.pickscore.processor", *processor, ("tokenizer", "images"))


def published_prompts(config: Config) -> list[tuple[str, str]]:
    """(set, file) of the prompts that the tasks take from their publication."""
    if config.prompts.world != "coco":
        return []
    published = ["pickscore"] + ["ocr"] * (config.prompts.ocr == "published")
    files = [
        (task.prompts.set, f"dataset/{task.prompts.set}/{split}.txt")
        for task in config.tasks.values()
        for split in ("train", "test")
        if task.prompts.set in published and getattr(task.prompts, split) is None
    ]
    return list(dict.fromkeys(files))


def reads_with_easyocr(config: Config) -> bool:
    """Whether EasyOCR reads pictures."""
    return "ocr" in needed(config) and config.scorers.ocr.engine == "easyocr"
