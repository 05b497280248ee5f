"""The examples of docs/extend, taken from the pages and run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import asked
from scorer_settings import scorers
from trainings import config, metrics

from star import config as configuration
from star.allocation import sources
from star.allocation.maps import allocation_map
from star.allocation.sources import Observation
from star.config import Allocation
from star.objectives import door
from star.prompts import make
from star.training import train as trainer

ROOT = Path(__file__).parents[2]


def example(page: str) -> dict[str, Any]:
    """What the first Python block of a page defines."""
    text = (ROOT / "docs/extend" / page).read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], found)
    return found


def test_the_reward() -> None:
    grey = np.full((4, 4, 3), 51, np.uint8)
    assert example("reward.md")["brightness"]([grey, 5 * grey], [None, None]) == pytest.approx([0.2, 1.0])


def test_the_scorer() -> None:
    scorer = example("scorer.md")["SaturationScorer"](scorers())
    half = np.zeros((4, 4, 3), np.uint8)
    half[:2, :, 0] = 255
    scores = scorer([half, half + 1], [asked("a red flag"), asked("a red flag")])
    assert scores[0].score == scores[0].reward == 0.5 and scorer.can_score(asked("a red flag"))
    scorer.check([asked("a red flag")])


def test_the_source_of_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Observation(samples=2, steps=3, tokens=(5, 5), patch=2)
    raw = example("allocation.md")["centre"](seen)
    assert raw.shape == (2, 3, 5, 5) and raw[0, 0, 2, 2] == raw.max() == 1
    monkeypatch.setattr(sources, "raw_map", lambda allocation, observed: raw)
    monkeypatch.setattr("star.allocation.maps.raw_map", lambda *_: raw)
    weights = allocation_map(Allocation(source="uniform", smoothing=0), seen, range(3))
    assert weights.shape == (2, 3, 10, 10) and torch.allclose(weights.mean((2, 3)), torch.ones(2, 3))
    assert weights[0, 0, 4, 4] > 1 > weights[0, 0, 0, 0]


def test_the_objective_trains(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best_only = example("objective.md")["BestOnly"]
    monkeypatch.setattr(trainer, "make_objective", lambda settings: best_only(settings.objective))
    monkeypatch.setattr(door, "make_objective", lambda settings: best_only(settings.objective))
    chosen = config(random_base, "objective={name: nft, times: 1}", "training.epochs=1", "rollout.same_start=false")
    settings = configuration.run_settings(chosen, "preference", "star")
    monkeypatch.chdir(ROOT)
    trainer.train(settings, 0, make.records(chosen, "preference", "train"), tmp_path)
    (row,) = metrics(tmp_path)
    assert row["policy_loss"] > 0 and row["grad_norm"] > 0
