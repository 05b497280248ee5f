"""Small trainings for tests, and how to compare two of them."""

import json
from pathlib import Path

TIMINGS = ("seconds_rollout", "seconds_reward", "seconds_maps", "seconds_update", "peak_memory_bytes")
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
)


def metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict]) -> list[dict]:
    """Metrics without what no two runs have in common."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
