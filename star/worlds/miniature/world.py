"""The miniature behind the door of the worlds: prompt sets, a detector, and the true regions of its pictures.

The records of three sets keep the names under which they were first drawn (`geneval-00000`, ...): these seed splits and noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from star.config import Prompts
from star.prompts.record import Prompt
from star.worlds.door import SPLITS, Detector
from star.worlds.miniature import detector, fair, prompts, scenes
from star.worlds.miniature.captions import TAGS, descriptions
from star.worlds.miniature.regions import region, region_of

DRAWN_AS = {"shapes": "geneval", "letters": "ocr", "preference": "pickscore"}


class Miniature:
    """star.worlds.door.World of drawn scenes."""

    sets = (*DRAWN_AS, *fair.NAMES)
    classes = frozenset(scenes.SHAPES)

    def splits(self, prompt_set: str) -> tuple[str, ...]:
        """SPLITS, and for the preference set `global`: prompts that speak of the whole picture."""
        return (*SPLITS, "global") if prompt_set == "preference" else SPLITS

    def records(self, prompt_set: str, split: str, _: Prompts) -> list[Prompt]:
        """Drawn prompts; nothing is read."""
        if prompt_set in fair.NAMES:
            return fair.records(prompt_set, split) if split in SPLITS else []
        return [replace(record, task=prompt_set) for record in prompts.records(DRAWN_AS[prompt_set], split)]

    def judged_by(self, prompt_set: str) -> frozenset[str]:
        """Letters quote a word, the others name objects."""
        return frozenset({"pickscore", "ocr" if prompt_set == "letters" else "geneval"})

    def files(self, *_: object) -> Sequence:
        """Nothing is published."""
        return ()

    def regions(self, pictures: Sequence[np.ndarray], prompts: Sequence[Prompt] = ()) -> list[np.ndarray]:
        """Whatever is not ground; where a prompt has an object beside the judged one, the judged one alone, if it is there."""
        judged = [prompt.metadata if "beside" in prompt.metadata else None for prompt in prompts] or [None] * len(pictures)
        return [
            region(picture) if metadata is None else region_of(picture, metadata)
            for picture, metadata in zip(pictures, judged, strict=True)
        ]

    def detector(self) -> Detector:
        """The analytic detector, its golden pictures one drawn scene a tag; the fingerprint is the hash of its source."""
        rng, golden = np.random.default_rng(0), []
        for tag in TAGS:
            description = next(descriptions(tag))
            golden.append((tag, scenes.render(scenes.compose(description, rng)), description))
        sources = b"".join(Path(module.__file__).read_bytes() for module in (detector, scenes))
        return Detector(
            lambda pictures: [detector.detect(picture) for picture in pictures],
            lambda pairs: [detector.color_of(picture, found) for picture, found in pairs],
            f"miniature@{hashlib.sha256(sources).hexdigest()[:12]}",
            golden,
            self.classes,
        )


WORLD = Miniature()
