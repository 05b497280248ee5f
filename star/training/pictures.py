"""Pictures of a few fixed prompts, drawn with the averaged weights while a training goes on, and what is measured on them.

They change no number of the training: all noise is named by (seed, prompt, picture), and nothing else is drawn.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from star.config import evaluated_policy, published_epochs
from star.files import whole, write_json
from star.flow.schedule import make_schedule
from star.layout import Run, epoch_of
from star.models.door import at
from star.models.memory import gathers
from star.prompts.record import Prompt
from star.sampling.sample import draw
from star.training import health

if TYPE_CHECKING:
    from star.training.epoch import Session

OF_PROMPT = 2  # pictures: as few as tell whether they differ
TILE = 320  # pixels of a side at most, in the grid


class Pictures:
    """The fixed prompts of a training, encoded once; pictures of them lie in the run's `pictures/`.

    Every process of the training must make one and call `take`, because a sharded base needs all of them for a picture.
    """

    def __init__(self, session: "Session", prompts: Sequence[Prompt], run: Run) -> None:
        self._session, self._prompts, self._run = session, list(prompts), run
        self._model = at(session.learner.policy.model, evaluated_policy(session.settings))
        self._schedule = make_schedule(self._model.sigmas(session.settings.evaluation.steps), noise_level=0.0)
        self._text = self._model.encode([prompt.text for prompt in prompts]) if prompts else None
        self._said: set[str] = set()

    def due(self, epoch: int) -> bool:
        """Whether an epoch has pictures: the untrained model, every few epochs, and checkpoints that are tested."""
        settings = self._session.settings
        return bool(self._prompts) and (epoch % settings.tracking.every == 0 or epoch in published_epochs(settings))

    def begin(self, done: int) -> None:
        """Drop pictures of epochs that are done again, and draw those of the untrained model."""
        if self._session.processes.rank == 0 and self._run.pictures.is_dir():
            for file in self._run.pictures.iterdir():
                epoch = epoch_of(file)
                if file.suffix in (".png", ".json") and epoch is not None and (epoch > done or done == 0):
                    file.unlink()
        if done == 0 and self.due(0):
            self.take(0)

    def take(self, epoch: int) -> dict[str, float]:
        """Draw, measure and keep the pictures of an epoch; returns what metrics.jsonl says of them."""
        session, began = self._session, time.perf_counter()
        first = session.processes.rank == 0
        if first or gathers(session.settings.compute, session.processes.count):
            pictures = self._drawn()
        if not first:
            return {}
        records = [prompt for prompt in self._prompts for _ in range(OF_PROMPT)]
        reward_P, _ = session.pool.submit(pictures, records).result()
        groups = [pictures[i : i + OF_PROMPT] for i in range(0, len(pictures), OF_PROMPT)]
        measured = {"reward": float(np.mean(reward_P)), **health.measure(groups)}
        with whole(self._run.picture(epoch)) as draft:
            _grid(groups).save(draft, "PNG")
        write_json(self._run.picture(epoch).with_suffix(".json"), {"epoch": epoch, "pictures": len(pictures), **measured})
        self._warn(epoch, measured)
        self._mark_best()
        return {"pictures": len(pictures), "seconds_pictures": time.perf_counter() - began}

    def _drawn(self) -> list[np.ndarray]:
        """The pictures of all prompts, those of one prompt side by side; in batches of the rollouts' size at most."""
        learner, batch = self._session.learner, self._session.settings.rollout.batch
        model, pictures = self._model, []
        place_P = np.repeat(np.arange(len(self._prompts)), OF_PROMPT)
        names = [(prompt.id, k) for prompt in self._prompts for k in range(OF_PROMPT)]
        with learner.policy.using(learner.ema.average):
            for start in range(0, len(names), batch):
                chosen = np.arange(start, min(start + batch, len(names)))
                rows = np.resize(chosen, batch) if model.compiled else chosen  # another size would be another program
                text = self._text[torch.from_numpy(place_P[rows])]
                named = [names[row] for row in rows]
                drawn = draw(model, text, schedule=self._schedule, names=named, seed=self._session.seed)
                pictures += drawn[: len(chosen)]
        return pictures

    def _warn(self, epoch: int, measured: dict[str, float]) -> None:
        """Say once of each guard that it has fallen."""
        first = json.loads(min(self._run.pictures.glob("epoch*.json")).read_text(encoding="utf-8"))
        for guard in health.fallen(first, measured):
            if guard not in self._said:
                self._said.add(guard)
                print(
                    f"warning: {guard} of the pictures is {measured[guard]:.3g} after epoch {epoch}, {first[guard]:.3g} after "
                    f"{first['epoch']}: the policy may be collapsing; look at {self._run.picture(epoch)} (docs/healthy.md)",
                    file=sys.stderr,
                    flush=True,
                )

    def _mark_best(self) -> None:
        """Keep which of the tested checkpoints has the highest reward on these prompts."""
        rewards = [row for row in measured(self._run) if row["epoch"] in published_epochs(self._session.settings)]
        if rewards:
            best = max(rewards, key=lambda row: row["reward"])  # the earliest of equal ones
            write_json(self._run.best, {"epoch": best["epoch"], "reward": best["reward"], "pictures": best["pictures"]})


def measured(run: Run) -> list[dict]:
    """What was measured on a run's pictures, by epoch."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(run.pictures.glob("epoch*.json"))]


def _grid(groups: list[list[np.ndarray]]) -> Image.Image:
    """A prompt a column, its pictures below each other."""
    grid = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in zip(*groups, strict=True)], axis=0))
    grid.thumbnail((len(groups) * TILE, OF_PROMPT * TILE))
    return grid
