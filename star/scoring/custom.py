"""A reward of the user's own: a function that Python finds under `module:function`.

`function(images, records)` takes uint8 [H, W, 3] pictures and their prompt records, and returns one number a picture, more is
better. The module lies in the folder where `star` or `snakemake` is started, or is installed.
"""

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from star.config import Scorers
from star.config.key import function_file
from star.errors import InputError
from star.files import sha256
from star.prompts.record import Prompt
from star.scoring.score import Score


class CustomScorer:
    """The scorer of `module:function`; its fingerprint has the hash of the module's file. Raises InputError."""

    tags = ()

    def __init__(self, name: str, scorers: Scorers) -> None:
        file = function_file(name)
        module, _, function = name.partition(":")
        self._name = name
        self._function: Callable | None = getattr(importlib.import_module(module), function, None)
        if not callable(self._function):
            raise InputError(f"reward.{name}: {file} has no function `{function}`")
        self.fingerprint = f"{name}@{sha256(file)[:12]}"

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any record can be scored, as far as we know."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Any record can be scored, as far as we know."""

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """The function's numbers, as `score` and `reward` of every picture.

        Raises InputError when the function does not return one number each.
        """
        values = np.asarray(self._function(images, [record.as_dict() for record in records]), float)
        if values.shape != (len(images),):
            raise InputError(
                f"reward.{self._name}: returned shape {values.shape} for {len(images)} pictures; return a number each"
            )
        return [Score(value, value) for value in values.tolist()]
