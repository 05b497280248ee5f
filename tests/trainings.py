"""Small trainings for tests, their parts, and how to compare two of them."""

import json
import os
from pathlib import Path

from star import config as configuration
from star.objectives.door import make_objective
from star.prompts import make
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training import train as trainer
from star.training.epoch import Session, measured_steps
from star.training.learner import Learner
from star.training.processes import Processes

ROOT = Path(__file__).parents[1]

TIMINGS = ("seconds_rollout", "seconds_reward", "seconds_maps", "seconds_update", "peak_memory_bytes")
PICTURES = ("pictures", "seconds_pictures")  # in lines of epochs that have some
SMALL = (  # on config/miniature.yaml: 3 epochs of 2 prompts x 4 images in batches of 4
    "rollout.steps=3",
    "rollout.groups=2",
    "rollout.group_size=4",
    "rollout.batch=4",
    "rollout.trained_fraction=0.7",
    "rollout.window=null",
    "rollout.window_range=null",
    "training.epochs=3",
    "checkpoints.every=1",
    "training.updates_per_epoch=1",
    "policy.lora={rank: 4, alpha: 8}",
    "scorers.workers=0",
    "allocation.blocks=[1, 3]",
    "tracking.live=false",
)


def metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict]) -> list[dict]:
    """Metrics without what no two runs have in common."""
    return [{k: v for k, v in row.items() if k not in (*TIMINGS, *PICTURES)} for row in rows]


def config(base: Path, *more: str) -> configuration.Config:
    """The miniature's configuration, made small."""
    return configuration.load(ROOT / "config/miniature.yaml", [*SMALL, f"policy.model={base}", *more])


def train(base: Path, out: Path, method: str, *more: str) -> list[dict]:
    """Train a method for the preference task into `out`; returns its metrics."""
    chosen = config(base, *more)
    os.chdir(ROOT)
    settings = configuration.run_settings(chosen, "preference", method)
    trainer.train(settings, 0, make.records(chosen, "preference", "train"), out)
    return metrics(out)


def session(settings: configuration.RunSettings, prompts: list[Prompt], pool: RewardPool) -> Session:
    """What the epochs of a training share, without true objects, in one process."""
    objective = make_objective(settings)
    policy = trainer.make_policy(settings, 0)
    steps = measured_steps(settings, objective)
    learner = Learner(policy, settings.optimizer, settings.training, keeps_old="old" in objective.asks, steps=steps)
    return Session(settings, 0, prompts, learner, objective, pool, Processes(), lambda pictures, prompts: None)


def with_images(config: configuration.Config, count: int) -> configuration.Config:
    """The configuration with `count` test pictures a prompt."""
    evaluation = config.evaluation.model_copy(update={"images_per_prompt": count})
    return config.model_copy(update={"evaluation": evaluation})
