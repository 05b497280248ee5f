"""Score a folder of pictures, one JSON line a picture, resumable. star/scoring/pictures.py says how prompts are found."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from star.config import SCORERS, Scorers
from star.errors import InputError
from star.scoring import pictures
from star.scoring.pictures import Sample
from star.scoring.scorer import Scorer, can_score, make_scorer

_BATCH = 48


def score(task: str, images: Path, out: Path, scorers: Scorers, prompts: Path | None = None) -> dict:
    """Score every picture under `images` with the scorer of `task` and write `out` (JSON lines); returns the `summary`.

    A killed run leaves `<out>.partial` and goes on from it. Raises InputError, naming the file, for a missing folder,
    missing or wrong metadata or prompts, an unreadable picture, or a partial file of another scorer.
    """
    return _run(_begin(task, pictures.find(images, task, prompts), out, make_scorer(task, scorers)))


def score_all(images: Path, out: Path, scorers: Scorers, prompts: Path | None = None) -> dict[str, dict | None]:
    """Score the pictures under `images` with every scorer into `out`/<task>.jsonl; returns the summaries by task.

    A task scores the pictures whose prompts have what it needs (`can_score`); None where no prompt has. Everything is
    checked before the first picture is scored. Raises InputError as `score`.
    """
    jobs = {}
    for task in SCORERS:
        samples = [sample for sample in pictures.find(images, task, prompts) if can_score(task, sample.record)]
        jobs[task] = _begin(task, samples, out / f"{task}.jsonl", make_scorer(task, scorers)) if samples else None
    return {task: job and _run(job) for task, job in jobs.items()}


class _Job(NamedTuple):
    task: str
    samples: list[Sample]
    out: Path
    scorer: Scorer
    lines: dict[str, dict]  # what an interrupted run has left, by picture


def _begin(task: str, samples: list[Sample], out: Path, scorer: Scorer) -> _Job:
    """Everything that can be wrong is found here."""
    lines = _finished(_partial(out), scorer.fingerprint)
    scorer.check([sample.record for sample in samples])
    for sample in samples:
        if sample.name not in lines:
            pictures.verify(sample.path)
        elif lines[sample.name]["prompt"] != sample.record.text:
            raise InputError(f"{_partial(out)}: begun with another prompt for {sample.name}; delete it")
    return _Job(task, samples, out, scorer, lines)


def _run(job: _Job) -> dict:
    task, samples, out, scorer, lines = job
    todo = [sample for sample in samples if sample.name not in lines]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out)
    interval = 0.1 if sys.stderr.isatty() else 10
    with (
        partial.open("a") as file,
        tqdm(total=len(samples), initial=len(samples) - len(todo), desc=f"scoring {task}", mininterval=interval) as bar,
    ):
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            for line in _score_batch(scorer, task, batch):
                lines[line["filename"]] = line
                file.write(json.dumps(line) + "\n")
            file.flush()
            bar.update(len(batch))
    ordered = [lines[sample.name] for sample in samples]
    partial.write_text("".join(json.dumps(line) + "\n" for line in ordered))
    partial.replace(out)
    return summary(task, ordered)


def summary(task: str, lines: list[dict]) -> dict:
    """Means of score lines: mean (for geneval the unweighted mean of the tag means), tags, images, prompts, scorer."""
    by_tag = defaultdict(list)
    for line in lines:
        by_tag[line["tag"]].append(line["score"])
    tags = {tag: float(np.mean(scores)) for tag, scores in by_tag.items()}
    mean = np.mean(list(tags.values())) if task == "geneval" else np.mean([line["score"] for line in lines])
    return {
        "task": task,
        "mean": float(mean),
        "tags": tags,
        "images": len(lines),
        "prompts": len({line["prompt_id"] for line in lines}),
        "scorer": lines[0]["scorer"],
    }


def print_summary(result: dict) -> None:
    """Print a summary, one figure a line; tags only for geneval, in the suite's order, others last."""
    print(f"{result['task']}: {result['images']} images of {result['prompts']} prompts")
    if result["task"] == "geneval":
        from star.scoring.geneval import TAGS

        for tag in sorted(result["tags"], key=lambda tag: TAGS.index(tag) if tag in TAGS else len(TAGS)):
            print(f"  {tag:<14} {result['tags'][tag]:.4f}")
    print(f"  {'overall' if result['task'] == 'geneval' else 'mean':<14} {result['mean']:.4f}")
    print(f"  scorer: {result['scorer']}")


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _finished(partial: Path, fingerprint: str) -> dict[str, dict]:
    """The lines of an interrupted run by file name; a torn last line is cut off."""
    if not partial.exists():
        return {}
    whole, _, _ = partial.read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    for line in lines:
        if line["scorer"] != fingerprint:
            raise InputError(f"{partial}: begun with another scorer, {line['scorer']!r}, not {fingerprint!r}; delete it")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {line["filename"]: line for line in lines}


def _score_batch(scorer: Scorer, task: str, samples: Sequence[Sample]) -> Iterator[dict]:
    results = scorer([pictures.read(sample.path) for sample in samples], [sample.record for sample in samples])
    for sample, result in zip(samples, results, strict=True):
        yield {
            "filename": sample.name,
            "tag": sample.record.tag,
            "prompt": sample.record.text,
            **result,
            "prompt_id": sample.record.id,
            "sample": sample.number,
            "scorer": scorer.fingerprint,
            "task": task,
        }
