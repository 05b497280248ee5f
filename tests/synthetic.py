"""A whole experiment of simulated scores and metrics on disk, whose true differences between methods are known.

Prompts, noise and differences follow the scorer of a task's main column, not the task's name.
"""

import numpy as np
import pandas as pd

from star import code, layout
from star.analysis.comparisons import KINDS
from star.analysis.results import methods
from star.config import Config, main_scorer, run_settings
from star.evidence.questions import ATTRIBUTE_METHODS, attribute_task
from star.files import write_json, write_jsonl, write_text

TAGS = {
    "geneval": {"single_object": 5, "two_object": 10, "counting": 7, "colors": 12, "position": 30, "color_attr": 40},
    "ocr": {"ocr": 96},
    "pickscore": {"free": 96},
}
LEARNED = {"geneval": 0.16, "ocr": 0.18, "pickscore": 4.5}  # by flow_grpo
START = {"geneval": 0.5, "ocr": 0.45, "pickscore": 13.0}
MACHINE = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "gpu": None, "torch": "2.13.0"}
CODE = "0123456789ab"
_WRONG = "expected red cat>=1, found 1 blue\nexpected dog>=1, found 0"
Prompts = list[tuple[str, str, str]]  # id, tag, text


def fill(config: Config, gain: dict[str, float], images: int = 2) -> None:
    """Write everything that `star evidence` reads. `gain`: what a method adds to flow_grpo, in units of LEARNED."""
    shared = np.random.default_rng(0)
    for task in config.tasks:
        scorer = main_scorer(config, task)
        tags = [tag for tag, count in TAGS[scorer].items() for _ in range(count)]
        prompts = [(f"{scorer}-{i:05d}", tag, f"prompt {i}") for i, tag in enumerate(tags)]
        difficulty_P = START[scorer] + shared.normal(0, 0.3 * LEARNED[scorer], len(prompts))
        for method in methods(config, task):
            own = np.random.default_rng([1, *method.encode()])
            taste_P = own.normal(0, 0.1 * LEARNED[scorer], len(prompts))  # prompts that the method likes
            for seed in config.seeds:
                luck = own.normal(0, 0.05)
                learned_P = taste_P + LEARNED[scorer] * (1 + gain.get(method, 0.0) + luck)
                _write_tests(config, (task, method, seed), prompts, (difficulty_P, learned_P), images)
                if method != "base":
                    _write_training(config, task, method, seed)
    if attribute_task(config):
        _fill_attributes(config, gain)


def _write_tests(
    config: Config, run: tuple[str, str, int], prompts: Prompts, mean_and_learned: tuple[np.ndarray, np.ndarray], images: int
) -> None:
    """Scores and guards of every tested epoch; what is learned grows on a straight line."""
    task, method, seed = run
    scorer, files, epochs = main_scorer(config, task), layout.run(config, *run), layout.epochs(config, task, method)
    start_P, learned_P = mean_and_learned
    for epoch in epochs:
        progress = epoch / epochs[-1] if epoch else 0.0
        rng = np.random.default_rng([seed, epoch])  # the noise of the pictures is shared by all methods
        rows = _scores(scorer, prompts, start_P + progress * learned_P, images, rng)
        write_jsonl(files.scores(epoch), rows)
        write_text(files.samples(epoch) / code.FILE, f"{CODE}\n")
        other = "pickscore" if scorer != "pickscore" else "geneval"
        guards = {"diversity": 0.3 - 0.1 * progress, "edge_density": 0.1, "color_entropy": 2.0 - 0.1 * progress}
        cross = {other: {"mean": 1 + progress, "images": 9, "scorer": "x"}}
        write_json(files.guards(epoch), {"images": len(rows), "features": "clip", **guards, "cross": cross})


def _scores(scorer: str, prompts: Prompts, mean_P: np.ndarray, images: int, rng: np.random.Generator) -> list[dict]:
    rows = []
    for i, (name, tag, text) in enumerate(prompts):
        for k in range(images):
            score = float(mean_P[i] + rng.normal(0, 0.05 * LEARNED[scorer]))
            row = {"prompt_id": name, "tag": tag, "prompt": text, "sample": k, "filename": f"{i:05d}/samples/{k:04d}.png"}
            reason = {"reason": _WRONG if k == 0 else ""} if scorer == "geneval" else {}
            rows.append(row | {"score": score, "scorer": scorer} | reason)
    return rows


def _write_training(config: Config, task: str, method: str, seed: int) -> None:
    run = layout.run(config, task, method, seed)
    write_jsonl(run.metrics, _metrics(config, task, method, seed))
    write_text(run.settings, run_settings(config, task, method).model_dump_json())
    write_text(run.trained, "")
    write_json(run.environment, MACHINE)
    write_text(run.folder / code.FILE, f"{CODE}\n")


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


def _fill_attributes(config: Config, gain: dict[str, float], each: int = 12) -> None:
    """Global attributes halve what star gains, and widen its maps from 0.7 to 0.9."""
    places = [(kind, i) for i in range(each) for kind in KINDS]
    grounds = {"dark": " on a dark background", "light": " on a light background"}
    prompts = [
        (f"g{i}-{kind}", kind, f"{kind if kind == 'one_color' else 'thing'} {i}{grounds.get(kind, '')}") for kind, i in places
    ]
    content = np.random.default_rng(3).normal(0, 1, each)
    content_P = np.array([content[i] for _, i in places])
    task = attribute_task(config)
    scorer = main_scorer(config, task)
    for seed in config.seeds:
        for method in ATTRIBUTE_METHODS:
            folder = layout.run(config, task, method, seed).attributes
            added_P = np.array([gain.get(method, 0.0) * (0.5 if kind in grounds else 1.0) for kind, _ in places])
            learned_P = LEARNED[scorer] * (1 + added_P) if method != "base" else 0.0
            rows = _scores(scorer, prompts, START[scorer] + content_P + learned_P, 2, np.random.default_rng(seed))
            write_jsonl(folder / "scores.jsonl", rows)
            write_text(folder / "samples" / code.FILE, f"{CODE}\n")
        rows = [
            {"prompt_id": name, "tag": tag, "prompt": prompt, "step": t, "entropy": 0.9, "gain": 1.5}
            | {"effective_area": 0.9 if tag in grounds else 0.7}
            for name, tag, prompt in prompts
            for t in range(3)
        ]
        pd.DataFrame(rows).to_csv(layout.run(config, task, "star", seed).attributes / "map_statistics.csv", index=False)
