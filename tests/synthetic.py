"""A whole experiment of simulated scores and metrics on disk, whose true differences between methods are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from star import layout
from star.analysis.results import methods
from star.config import Config, run_settings
from star.evidence.questions import ATTRIBUTE_METHODS, attribute_task
from star.evidence.tables import KINDS

TAGS = {
    "shapes": {"single_object": 5, "two_object": 10, "counting": 7, "colors": 12, "position": 30, "color_attr": 40},
    "letters": {"ocr": 96},
    "preference": {"free": 96},
}
LEARNED = {"shapes": 0.16, "letters": 0.18, "preference": 4.5}  # by flow_grpo
MACHINE = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "gpu": None, "torch": "2.13.0"}
START = {"shapes": 0.5, "letters": 0.45, "preference": 13.0}


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _scores(
    task: str, prompts: list[tuple[str, str, str]], mean_P: np.ndarray, images: int, rng: np.random.Generator
) -> list[dict]:
    spread = 0.05 * LEARNED[task]
    return [
        {"prompt_id": name, "tag": tag, "prompt": prompt, "sample": k, "filename": f"{i:05d}/samples/{k:04d}.png"}
        | {"score": float(mean_P[i] + rng.normal(0, spread)), "scorer": task, "task": task}
        | {"reason": "expected red cat>=1, found 1 blue\nexpected dog>=1, found 0" if k == 0 else ""}
        for i, (name, tag, prompt) in enumerate(prompts)
        for k in range(images)
    ]


def _metrics(config: Config, task: str, method: str, seed: int) -> list[dict]:
    settings, rng = run_settings(config, task, method), np.random.default_rng([seed, len(method)])
    seconds = {"seconds_rollout": 2.5, "seconds_maps": 0.01, "seconds_reward": 0.05, "seconds_update": 2.4}
    known = {"images": 96, "peak_memory_bytes": 8e8, "reward_std": 0.3, "ratio_mean": 1.0, "loss": 0.0, "policy_loss": 0.0}
    maps = {}
    if settings.allocation.source != "none":
        maps = {"map_localisation": 1.6, "gradient_inside": 0.4, "object_area": 0.25, "map_entropy": 0.95}
        maps |= {"map_effective_area": 0.7, "map_drift": 0.1}
        maps |= {f"localisation_block{b}_step{t}": 1.8 - 0.1 * t for b in settings.allocation.blocks for t in range(8)}
    return [
        {"epoch": epoch, **known, "reward_mean": epoch / settings.training.epochs}
        | {key: value * rng.uniform(0.95, 1.05) for key, value in seconds.items()}
        | {"kl": 0.02, "clip_fraction": 0.1, "grad_norm": 0.3, "update_norm": rng.uniform(0.38, 0.42), **maps}
        for epoch in range(1, settings.training.epochs + 1)
    ]


def fill(config: Config, gain: dict[str, float], images: int = 2) -> None:
    """Write everything that `star evidence` reads. `gain`: what a method adds to flow_grpo, in units of LEARNED."""
    shared = np.random.default_rng(0)
    for task in config.tasks:
        tags = [tag for tag, count in TAGS[task].items() for _ in range(count)]
        prompts = [(f"{task}-{i:05d}", tag, f"prompt {i}") for i, tag in enumerate(tags)]
        difficulty = shared.normal(0, 0.3 * LEARNED[task], len(prompts))
        for method in methods(config, task):
            own = np.random.default_rng([1, *method.encode()])
            taste = own.normal(0, 0.1 * LEARNED[task], len(prompts))  # prompts that the method likes
            *_, last = layout.epochs(config, task, method)
            for seed in config.seeds:
                run, luck = layout.run(config, task, method, seed), own.normal(0, 0.05)
                for step in layout.epochs(config, task, method):
                    progress = step / last if last else 0.0
                    learned = LEARNED[task] * progress * (1 + gain.get(method, 0.0) + luck)
                    rng = np.random.default_rng([seed, step])  # the noise of the pictures is shared by all methods
                    rows = _scores(task, prompts, START[task] + difficulty + learned + progress * taste, images, rng)
                    _jsonl(run.scores(step), rows)
                    cross = {
                        "pickscore" if task != "preference" else "geneval": {"mean": 1 + progress, "images": 9, "scorer": "x"}
                    }
                    guards = {"diversity": 0.3 - 0.1 * progress, "edge_density": 0.1, "color_entropy": 2.0 - 0.1 * progress}
                    path = run.guards(step)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps({"images": len(rows), "features": "clip", **guards, "cross": cross}))
                if method != "base":
                    _jsonl(run.metrics, _metrics(config, task, method, seed))
                    run.settings.write_text(run_settings(config, task, method).model_dump_json())
                    run.trained.touch()
                    run.environment.write_text(json.dumps(MACHINE))
    if attribute_task(config) is not None:
        _fill_attributes(config, gain)


def _fill_attributes(config: Config, gain: dict[str, float], each: int = 12) -> None:
    """Global attributes halve what star gains, and widen its maps from 0.7 to 0.9."""
    places = [(kind, i) for i in range(each) for kind in KINDS]
    grounds = {"dark": " on a dark background", "light": " on a light background"}
    prompts = [
        (f"g{i}-{kind}", kind, f"{kind if kind == 'one_color' else 'thing'} {i}{grounds.get(kind, '')}") for kind, i in places
    ]
    content = np.random.default_rng(3).normal(0, 1, each)
    for seed in config.seeds:
        for method in ATTRIBUTE_METHODS:
            folder = layout.run(config, "preference", method, seed).attributes
            added = np.array([gain.get(method, 0.0) * (0.5 if kind in grounds else 1.0) for kind, _ in places])
            mean_P = (
                START["preference"] + content[[i for _, i in places]] + (method != "base") * LEARNED["preference"] * (1 + added)
            )
            _jsonl(folder / "scores.jsonl", _scores("preference", prompts, mean_P, 2, np.random.default_rng(seed)))
        rows = [
            {"prompt_id": name, "tag": tag, "prompt": prompt, "step": t, "entropy": 0.9, "gain": 1.5}
            | {"effective_area": 0.9 if tag in grounds else 0.7}
            for name, tag, prompt in prompts
            for t in range(3)
        ]
        pd.DataFrame(rows).to_csv(layout.run(config, "preference", "star", seed).attributes / "map_statistics.csv", index=False)
