"""A reward of the user's own: a function that Python finds under `module:function`.

`function(images, records)` takes uint8 [H, W, 3] pictures and their prompt records, and returns one number a picture, more is
better. The module lies in the folder where `star` or `snakemake` is started, or is installed.
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence

import numpy as np

from star.config.key import function_file
from star.errors import InputError
from star.prompts.record import Prompt


class CustomScorer:
    """The scorer of `module:function`; its fingerprint has the hash of the module's file. Raises InputError."""

    def __init__(self, name: str) -> None:
        file = function_file(name)
        module, _, function = name.partition(":")
        self._name = name
        self._function: Callable | None = getattr(importlib.import_module(module), function, None)
        if not callable(self._function):
            raise InputError(f"reward.{name}: {file} has no function `{function}`")
        self.fingerprint = f"{name}@{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"

    def check(self, records: Sequence[Prompt]) -> None:
        """Any record can be scored, as far as we know."""

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[dict]:
        """`score` and `reward` of every picture. Raises InputError when the function does not return one number each."""
        values = np.asarray(self._function(images, [record.as_dict() for record in records]), float)
        if values.shape != (len(images),):
            raise InputError(
                f"reward.{self._name}: returned shape {values.shape} for {len(images)} pictures; return a number each"
            )
        return [{"score": value, "reward": value} for value in values.tolist()]
