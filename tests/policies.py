"""Small models and policies for tests, on random weights."""

from pathlib import Path

from star.config import Compute, Lora
from star.config import PolicySettings as Settings
from star.models.door import FlowModel, load_model
from star.models.policy import Policy


def settings(base: Path | str, **changes: object) -> Settings:
    """The section `policy` for a random base of the miniature's size."""
    given = {"model": str(base), "resolution": 64, "guidance": 1.0, "max_sequence_length": 16, "device": "cpu"}
    return Settings(**{**given, "lora": Lora(rank=4, alpha=8)} | changes)


def model(base: Path | str, compute: Compute | None = None, **changes: object) -> FlowModel:
    """A frozen base."""
    return load_model(settings(base, **changes), compute)


def policy(base: Path | str, seed: int = 0, **changes: object) -> Policy:
    """A base with a fresh adapter."""
    chosen = settings(base, **changes)
    return Policy(load_model(chosen), chosen.lora, seed)
