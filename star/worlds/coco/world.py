"""Photographs behind the door of the worlds: prompts of GenEval, Flow-GRPO's lettering and Pick-a-Pic captions."""

from collections.abc import Sequence

from star.config import Prompts
from star.prompts.record import Prompt
from star.worlds.coco import geneval, ocr, pickscore
from star.worlds.coco.published import PublishedFile
from star.worlds.door import SPLITS


class Coco:
    """star.worlds.door.World of everyday photographs; its detectors are trained ones."""

    sets = ("geneval", "ocr", "pickscore")
    classes = frozenset(geneval.CLASSES)

    def splits(self, _: str) -> tuple[str, ...]:
        """SPLITS."""
        return SPLITS

    def records(self, prompt_set: str, split: str, prompts: Prompts) -> list[Prompt]:
        """GenEval's suite is made here, the others are read. Raises InputError when a published file cannot be had."""
        if prompt_set == "geneval":
            return geneval.records(split)
        return {"ocr": ocr, "pickscore": pickscore}[prompt_set].records(split, prompts)

    def judged_by(self, prompt_set: str) -> frozenset[str]:
        """Every prompt has words; GenEval's name objects; some captions of Pick-a-Pic quote a target."""
        return frozenset({"pickscore", "geneval" if prompt_set == "geneval" else "ocr"})

    def files(self, prompt_set: str, split: str, prompts: Prompts) -> Sequence[PublishedFile]:
        """One file, unless the prompts are generated."""
        if prompt_set == "geneval" or (prompt_set == "ocr" and prompts.ocr == "generated"):
            return ()
        return (PublishedFile.of(prompt_set, split, prompts.mirror),)

    def regions(self, *_: object) -> None:
        """Nobody knows them."""

    def detector(self) -> None:
        """None of its own."""


WORLD = Coco()
