"""The door to the worlds: where prompts come from, and what is known of the pictures that they ask for.

`world` is the only place where a world's name decides. A further world is one module that defines `WORLD`, and its line here.

Shapes: H W pixels.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from star.errors import InputError
from star.prompts.record import Prompt

if TYPE_CHECKING:
    import numpy as np

    from star.config import Prompts

_MODULES = {"miniature": "star.worlds.miniature.world", "coco": "star.worlds.coco.world"}
NAMES = tuple(_MODULES)
SPLITS = ("train", "validation", "test")


class PromptFile(Protocol):
    """A published file that a prompt set is read from."""

    name: str

    def local(self) -> Path | None:
        """Where it lies on this machine, None where it is to be fetched. Raises InputError for a changed file."""

    def fetch(self) -> Path:
        """Bring it here, unless it is here. Raises InputError, with the remedies, when it cannot be had."""


class Detector(NamedTuple):
    """What sees the objects of a world's pictures, uint8 [H, W, 3].

    `detect` gives for every picture its objects (cls, box x1 y1 x2 y2 in pixels, score 0..1, mask bool [H, W]), `colors_of`
    the colour of every (picture, object). `classes` are all that it can find. `golden` are pictures with their names and
    GenEval metadata, of which each is right.
    """

    detect: "Callable[[Sequence[np.ndarray]], list[Sequence]]"
    colors_of: "Callable[[Sequence[tuple[np.ndarray, object]]], list[str]]"
    fingerprint: str
    golden: "list[tuple[str, np.ndarray, dict]]"
    classes: frozenset[str]


class World(Protocol):
    """What the rest of the package may ask of a world; `prompts` is that section of the configuration."""

    sets: tuple[str, ...]
    classes: frozenset[str]  # of objects that its prompts can name and its detectors find

    def splits(self, prompt_set: str) -> tuple[str, ...]:
        """The splits of a set: SPLITS, and more where it has more."""

    def records(self, prompt_set: str, split: str, prompts: "Prompts") -> list[Prompt]:
        """The prompts of a set's split, whose task is the set's name. Raises InputError when a published file cannot be had."""

    def judged_by(self, prompt_set: str) -> frozenset[str]:
        """The scorers that a set's prompts give enough to: geneval, ocr, pickscore."""

    def files(self, prompt_set: str, split: str, prompts: "Prompts") -> Sequence[PromptFile]:
        """The published files that a split is made from; none where it is generated."""

    def regions(self, pictures: "Sequence[np.ndarray]", prompts: Sequence[Prompt] = ()) -> "list[np.ndarray] | None":
        """Where pictures, uint8 [H, W, 3], show what they were asked for: bool [H, W] each. None: the truth is unknown.

        Without their `prompts` it is every object that they show.
        """

    def detector(self) -> Detector | None:
        """The world's own detector; None where pictures need one that is trained on photographs."""


def world(name: str) -> World:
    """The world of a name. Raises InputError when there is none."""
    if name not in _MODULES:
        raise InputError(f"prompts.world: no world `{name}`; known are {', '.join(NAMES)}")
    return importlib.import_module(_MODULES[name]).WORLD


def every_class() -> frozenset[str]:
    """The classes of all worlds."""
    return frozenset().union(*(world(name).classes for name in NAMES))


def own_detector(name: str) -> Detector | None:
    """The detector that the world of this name brings along; None where the name is no world's."""
    return world(name).detector() if name in _MODULES else None
