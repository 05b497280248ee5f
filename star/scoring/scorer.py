"""The scorer door: pictures and prompt records in, scores out; a scorer never sees the policy.

A scorer serves as the training reward and in evaluation. Its fingerprint says what scored: scores of different fingerprints
never share a table column. Its name decides here and nowhere else; another scorer is a file beside these and a line below.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from star.config import SCORERS
from star.errors import InputError
from star.prompts.record import Prompt
from star.runtime import declare_torchvision
from star.worlds.door import world

if TYPE_CHECKING:
    import numpy as np

    from star.config import Config, Scorers
    from star.scoring.score import Score


SUITE = ("geneval", "ocr", "pickscore")  # what `--all` scores and the guards look with, where prompts allow it
GUARDS = ("diversity", "edge_density", "color_entropy")  # of star.scoring.guards; beside them scores of other tasks


class Scorer(Protocol):
    """What `make_scorer` returns."""

    fingerprint: str  # backend, model, weights hash, library version, settings
    tags: tuple[str, ...]  # a set's mean is the mean of these tags' means; (): of all pictures

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Whether a prompt record has what this kind of scorer needs."""

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError, naming the prompt, when a record cannot be scored by this scorer."""

    def __call__(self, images: "Sequence[np.ndarray]", records: Sequence[Prompt]) -> "list[Score]":
        """Score uint8 [H, W, 3] pictures of prompt records."""


def scorer_class(name: str) -> type[Scorer]:
    """The class of the scorer `name`, with nothing loaded yet. Raises InputError for a name that is none."""
    if name.startswith("service:"):
        from star.scoring.service import ServiceScorer as Chosen
    elif name.startswith("judge:"):
        from star.scoring.judge import JudgeScorer as Chosen
    elif ":" in name:
        from star.scoring.custom import CustomScorer as Chosen
    elif name == "geneval":
        from star.scoring.geneval import GenevalScorer as Chosen
    elif name == "ocr":
        from star.scoring.ocr import OcrScorer as Chosen
    elif name == "pickscore":
        declare_torchvision()
        from star.scoring.pickscore import PickScorer as Chosen
    elif name == "clipscore":
        declare_torchvision()
        from star.scoring.clipscore import ClipScorer as Chosen
    elif name == "hpsv2":
        declare_torchvision()
        from star.scoring.hpsv2 import HpsScorer as Chosen
    elif name == "imagereward":
        declare_torchvision()
        from star.scoring.imagereward import ImageRewardScorer as Chosen
    elif name == "aesthetic":
        declare_torchvision()
        from star.scoring.aesthetic import AestheticScorer as Chosen
    else:
        known = f"{', '.join(SCORERS)}, service:NAME, judge:NAME, and your own as module:function"
        raise InputError(f"scorer {name!r}: no such scorer; there are {known}")
    return Chosen


def make_scorer(name: str, scorers: "Scorers") -> Scorer:
    """The scorer `name`: one of SCORERS, `service:NAME`, `judge:NAME`, or a user's own `module:function`.

    Raises InputError when its weights are missing or it does not exist, and ScorerFailed when it is wrong on a golden picture.
    """
    chosen = scorer_class(name)
    return chosen(name, scorers) if ":" in name else chosen(scorers)


def can_score(name: str, record: Prompt) -> bool:
    """Whether a prompt record has what the scorer `name` needs: objects for geneval, a quoted target for ocr."""
    return scorer_class(name).can_score(record)


def needed(config: "Config") -> set[str]:
    """The scorers that a configuration runs: of its rewards and reports, and those that the collapse guards look with.

    The guards look with every scorer that a task's prompts give enough to.
    """
    origin = world(config.prompts.world)
    sets = (task.prompts.set for task in config.tasks.values() if task.prompts.set is not None)
    named = ([*task.reward, *task.report] for task in config.tasks.values())
    return {"pickscore"}.union(*map(origin.judged_by, sets), *named)
