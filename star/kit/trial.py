"""`star kit`: a first run on real weights. Everything is tried small, and one file says how it went. Source: ours.

Tried are: weights and machine as `star doctor` sees them, each scorer with its golden pictures, one epoch of each objective
with the ratio's check, its seconds and its peak memory beside the plan's, and pictures in GenEval's layout. What was done is
not done again: a killed kit goes on, and takes along verdicts of GenEval's own detector that were made meanwhile.
"""

import gc
import json
import math
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from star import config as configuration
from star.config import OBJECTIVES, Config, RunSettings
from star.doctor import machine, packages, prompts, weights
from star.errors import Diverged, InputError, ScorerFailed
from star.files import read_jsonl, whole, write_json, write_jsonl
from star.layout import Run
from star.objectives.door import make_objective
from star.prompts import make
from star.runtime import environment, pick_device, revision
from star.sampling.sample import sample
from star.scoring.scorer import can_score, make_scorer, needed
from star.training import plan
from star.training.epoch import trained_steps
from star.training.train import Watched, make_policy, train

_PROMPTS = 8  # whose pictures are sampled, one each, and sent
_FIXED = 4  # prompts that are drawn before and after an objective's epoch
_NOTHING_LEARNED = (
    "no image had an advantage, so there was no update and no ratio; take another --task or --seed, or larger groups"
)
_EXPECTED = (InputError, ScorerFailed, Diverged, RuntimeError)  # what the kit is there to find; OutOfMemoryError is the last


def try_all(paths: Sequence[Path], sets: Sequence[str], task: str, *, out: Path, seed: int) -> int:
    """Try everything of a configuration and write `out`.zip; returns 0 when all was fine, else 1.

    Raises InputError when the configuration itself is wrong.
    """
    alone = ["compute.processes=1", "compute.machines=1", "compute.shard=false", "tracking.live=false"]
    sets = [*sets, *alone, *(f"methods.{_method(name)}={{}}" for name in OBJECTIVES)]
    config = configuration.load(paths, sets)
    configuration.require_task(config, task)
    device = pick_device(config.policy.device)
    found: dict[str, Any] = {"config": config.model_dump(mode="json"), "revision": revision(), "task": task, "seed": seed}
    found["environment"] = environment(device)

    # What is there, and whether scorers are right.
    found["doctor"] = [{"fine": fine, "line": line} for fine, line in _doctor(config)]
    trials = {f"scorer {name}": _try(lambda name=name: _scorer(config, name)) for name in sorted(needed(config))}

    # An epoch of each objective, and pictures.
    records = make.records(config, task, "train")
    for name in OBJECTIVES:
        trials[f"objective {name}"] = _try(lambda name=name: _objective(paths, sets, task, name=name, out=out, seed=seed))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    trials["pictures"] = _try(lambda: _pictures(config, records, out, seed))
    verdicts = out / "verdicts.jsonl"
    if verdicts.is_file():
        trials["official verdicts"] = _try(lambda: _verdicts(verdicts))

    found["trials"] = trials
    write_json(out / "kit.json", found)
    _pack(out)
    for name, trial in trials.items():
        print(f"{'ok  ' if trial['fine'] else 'FAIL'} {name}: {trial['said']}")
    print(f"Send back {out.with_suffix('.zip')}: versions, numbers, pictures and the configuration, no weights")
    return 0 if all(trial["fine"] for trial in trials.values()) and all(check["fine"] for check in found["doctor"]) else 1


def _method(objective: str) -> str:
    return f"kit-{objective}"


def _doctor(config: Config) -> list[tuple[bool, str]]:
    checks = list(chain.from_iterable(part.check(config) for part in (packages, weights, prompts, machine)))
    for fine, line in checks:
        print(f"{'ok  ' if fine else 'FAIL'} {line}", flush=True)
    return checks


def _try(trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a trial found, with `fine`, what is `said` of it, and its seconds."""
    began = time.perf_counter()
    try:
        found = {"fine": True, **trial()}
    except _EXPECTED as error:
        found = {"fine": False, "said": " ".join(f"{type(error).__name__}: {error}".split())[:1000]}
    return found | {"seconds": round(time.perf_counter() - began, 3)}


def _scorer(config: Config, name: str) -> dict[str, Any]:
    """A scorer is built, which looks at its golden pictures."""
    scorer = make_scorer(name, config.scorers)
    return {"said": "right on its golden pictures", "fingerprint": scorer.fingerprint}


def _objective(paths: Sequence[Path], sets: Sequence[str], task: str, *, name: str, out: Path, seed: int) -> dict[str, Any]:
    """An epoch of an objective, with the least groups that fill its batches, and what was planned for it."""
    settings = _settings(paths, sets, task, name)
    config = configuration.load(paths, sets)
    policy = make_policy(settings, seed)
    planned, branches = plan.memory_of(policy, settings, 1), policy.model.passes
    on_gpu = policy.device.type == "cuda"
    del policy
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = Run(out / name)
    train(settings, seed, make.records(config, task, "train"), run.folder, watched=Watched(make.fixed(config, task, _FIXED)))
    (row,) = read_jsonl(run.metrics)
    learned = row["zero_advantage_share"] < 1
    return {
        "fine": learned,
        "said": _of_epoch(row, planned, settings, on_gpu=on_gpu) if learned else _NOTHING_LEARNED,
        "metrics": row,
        "planned_bytes": {"parts": planned.parts, "phases": planned.phases, "peak": planned.phases[planned.peak]},
        "passes": plan.passes(settings, branches)._asdict(),
        "settings": settings.model_dump(mode="json"),
    }


def _of_epoch(row: dict, planned: plan.Memory, settings: RunSettings, *, on_gpu: bool) -> str:
    """Whether the ratio was 1, seconds an image, and memory beside the plan's, GiB."""
    measured, estimated = row["peak_memory_bytes"] / 2**30, planned.phases[planned.peak] / 2**30
    ratio = "every ratio 1 before the first update; " if make_objective(settings).noisy else ""
    seconds = row["seconds_rollout"] + row["seconds_reward"] + row["seconds_update"]
    whose = "" if on_gpu else " (of the whole process, on a CPU)"
    return f"{ratio}{seconds / row['images']:.3g} s an image, peak {measured:.2f} GiB, planned {estimated:.2f} GiB{whose}"


def _settings(paths: Sequence[Path], sets: Sequence[str], task: str, name: str) -> RunSettings:
    """The settings of one small epoch of an objective; what its family cannot do is taken out."""
    changes: dict[str, dict] = {"objective": {"name": name}, "training": {"epochs": 1}, "checkpoints": {"every": 1}}
    settings = _resolved(paths, sets, task, name, changes)
    rollout = settings.rollout
    groups = math.lcm(rollout.batch, rollout.group_size) // rollout.group_size * settings.training.updates_per_epoch
    changes["rollout"] = {"groups": groups}
    changes["allocation"] = {"source": "attention" if settings.allocation.blocks else "none", "control": "none"}
    objective = make_objective(settings)
    if not objective.noisy:
        without = {"same_start": False, "window": None, "window_range": None, "sampler": "flow_sde"}
        changes["rollout"] |= without
        changes["allocation"] |= {"normalisation": "per_step", "steps": "each"}
        settings = _resolved(paths, sets, task, name, changes)
        if (settings.objective.times or 1) > len(objective.levels(trained_steps(settings.rollout, 0, 1))):
            changes["objective"]["times"] = None
    return _resolved(paths, sets, task, name, changes)


def _resolved(paths: Sequence[Path], sets: Sequence[str], task: str, name: str, changes: dict[str, dict]) -> RunSettings:
    return configuration.run_settings(
        configuration.load(paths, [*sets, f"methods.{_method(name)}={json.dumps(changes)}"]), task, _method(name)
    )


def _pictures(config: Config, records: Sequence, out: Path, seed: int) -> dict[str, Any]:
    """Pictures of the untrained model in GenEval's layout, of prompts that GenEval can judge where there are some."""
    judged = [record for record in records if can_score("geneval", record)]
    chosen = (judged or list(records))[:_PROMPTS]
    write_jsonl(out / "prompts.jsonl", [record.as_dict() for record in chosen])
    one = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"images_per_prompt": 1})})
    sample(one, out / "prompts.jsonl", out / "samples", adapter=None, seed=seed)
    count = len(list((out / "samples").glob("*/samples/*.png")))
    return {"said": f"{count} of {len(chosen)} prompts, for GenEval: {'yes' if judged else 'no'}", "count": count}


def _verdicts(file: Path) -> dict[str, Any]:
    """What GenEval's own detector said of the pictures."""
    rows = read_jsonl(file)
    right = sum(bool(row.get("correct")) for row in rows)
    return {"said": f"{right} of {len(rows)} pictures are correct by GenEval's own detector", "rows": rows}


def _pack(out: Path) -> None:
    """One file of what is worth sending: numbers and pictures, no weights."""
    pictures = [*sorted(out.glob("*/pictures/epoch*.png")), *sorted(out.glob("samples/*/samples/*.png"))]
    others = [out / "kit.json", *sorted(out.glob("*/metrics.jsonl")), *sorted(out.glob("verdicts.jsonl"))]
    with whole(out.with_suffix(".zip")) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in (*others, *pictures):
            packed.write(file, f"{out.name}/{file.relative_to(out).as_posix()}")
    print(f"{out.with_suffix('.zip')}: {len(pictures)} pictures", file=sys.stderr)
