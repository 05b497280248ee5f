"""What a scorer says of one picture."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """`score` is reported, `reward` trained on; `findings` are what they rest on, by their keys in a score file."""

    score: float
    reward: float
    findings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The picture's part of its line in a score file."""
        return {"score": self.score, "reward": self.reward, **self.findings}
