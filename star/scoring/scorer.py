"""Scorers: pictures and prompt records in, scores out; a scorer never sees the policy.

A scorer serves as the training reward and in evaluation. Its fingerprint says what scored: scores of different fingerprints
never share a table column.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from star import torchvision_schemas
from star.errors import InputError
from star.prompts.record import Prompt

if TYPE_CHECKING:
    import numpy as np

    from star.config import Config, Scorers


GUARDS = ("diversity", "edge_density", "color_entropy")  # of star.scoring.guards; beside them scores of other tasks


class Scorer(Protocol):
    """What `make_scorer` returns."""

    fingerprint: str  # backend, model, weights hash, library version, settings

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError, naming the prompt, when a record cannot be scored by this scorer."""

    def __call__(self, images: "Sequence[np.ndarray]", records: Sequence[Prompt]) -> list[dict]:
        """Score uint8 [H, W, 3] pictures of prompt records: dicts with `score` (reported), `reward` (trained on) and more."""


def can_score(task: str, record: Prompt) -> bool:
    """Whether a prompt record has what the scorer of `task` needs: objects for geneval, a quoted target for ocr."""
    if task == "geneval":
        return bool(record.metadata.get("include"))
    if task == "ocr":
        from star.scoring.ocr import has_target

        return has_target(record)
    return True


def needed(config: "Config") -> set[str]:
    """The scorers that a configuration runs: of its rewards and reports, and those that the collapse guards look with.

    Every task's guards look with pickscore. Preference captions name objects in the miniature, and quote words elsewhere.
    """
    scorers = {"pickscore"}.union(*([*task.reward, *task.report] for task in config.tasks.values()))
    if any(task.prompts.set in ("preference", "pickscore") for task in config.tasks.values()):
        scorers.add("geneval" if config.prompts.world == "miniature" else "ocr")
    return scorers


def make_scorer(task: str, scorers: "Scorers") -> Scorer:
    """The scorer of `task`: geneval, ocr, pickscore, or a user's own `module:function`.

    Raises InputError when its weights are missing or its backend does not exist (yet).
    """
    if ":" in task:
        from star.scoring.custom import CustomScorer

        return CustomScorer(task)
    if task == "geneval":
        from star.scoring.geneval import GenevalScorer

        return GenevalScorer(scorers)
    if task == "ocr":
        from star.scoring.ocr import OcrScorer

        return OcrScorer(scorers)
    if task == "pickscore":
        torchvision_schemas.declare()
        from star.scoring.pickscore import PickScorer

        return PickScorer(scorers)
    raise InputError(f"task {task!r}: no such task; known: geneval, ocr, pickscore")
