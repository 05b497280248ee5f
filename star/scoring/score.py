"""What a scorer says of one picture, and what most want of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from star.errors import InputError
from star.prompts.record import Prompt


@dataclass(frozen=True)
class Score:
    """`score` is reported, `reward` trained on; `findings` are what they rest on, by their keys in a score file."""

    score: float
    reward: float
    findings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The picture's part of its line in a score file."""
        return {"score": self.score, "reward": self.reward, **self.findings}


def require_words(records: Sequence[Prompt], scorer: str) -> None:
    """Raise InputError when a prompt is empty."""
    for record in records:
        if not record.text.strip():
            raise InputError(f"prompt {record.id!r}: empty; {scorer} needs words to compare the picture with")
