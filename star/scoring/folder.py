"""Score a folder of pictures, one JSON line a picture, resumable. star/scoring/samples.py says how prompts are found."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from star import files
from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.scoring import pictures, samples
from star.scoring.samples import Sample
from star.scoring.scorer import SUITE, Scorer, can_score, make_scorer, scorer_class

_BATCH = 48
_NAMED = 5  # files that are named of those left out


def score(name: str, images: Path, out: Path, scorers: Scorers, prompts: Path | None = None) -> dict:
    """Score every picture under `images` with the scorer `name` and write `out` (JSON lines); returns the `summary`.

    A killed run leaves `<out>.partial` and goes on from it. Raises InputError, naming the file, for a missing folder,
    missing or wrong metadata or prompts, unreadable pictures, or a partial file of another scorer.
    """
    found = samples.find(images, name, prompts)
    job = _begin(name, found, out, make_scorer(name, scorers))
    _check([job])
    _say_left_out(images, found, prompts)
    return _run(job)


def score_all(images: Path, out: Path, scorers: Scorers, prompts: Path | None = None) -> dict[str, dict | None]:
    """Score the pictures under `images` with every scorer into `out`/<scorer>.jsonl; returns the summaries by scorer.

    A scorer scores the pictures whose prompts have what it needs; its summary counts the others as `left_out`, and is None
    where no prompt has. Everything is checked before the first picture is scored. Raises InputError as `score`.
    """
    jobs: dict[str, _Job | None] = {}
    counts = {}
    for name in SUITE:
        found = samples.find(images, name, prompts)
        suited = [sample for sample in found if can_score(name, sample.record)]
        counts[name] = len(found) - len(suited)
        jobs[name] = _begin(name, suited, out / f"{name}.jsonl", make_scorer(name, scorers)) if suited else None
    _check([job for job in jobs.values() if job])
    _say_left_out(images, found, prompts)
    return {name: job and {**_run(job), "left_out": counts[name]} for name, job in jobs.items()}


class _Job(NamedTuple):
    name: str
    samples: list[Sample]
    out: Path
    scorer: Scorer
    lines: dict[str, dict]  # what an interrupted run has left, by picture

    def todo(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.name not in self.lines]


def _say_left_out(images: Path, found: list[Sample], prompts: Path | None) -> None:
    names = samples.left_out(images, found, prompts)
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        print(f"{images}: {len(names)} left out, not scored: {', '.join(names[:_NAMED])}{more}", file=sys.stderr)


def _begin(name: str, found: list[Sample], out: Path, scorer: Scorer) -> _Job:
    """A job whose partial lines are right."""
    lines = _finished(_partial(out), scorer.fingerprint)
    for sample in found:
        if sample.name in lines and lines[sample.name]["prompt"] != sample.record.text:
            raise InputError(f"{_partial(out)}: begun with another prompt for {sample.name}; delete it")
    return _Job(name, found, out, scorer, lines)


def _check(jobs: list[_Job]) -> None:
    """Read every picture that is to be scored, once, and check every prompt: before hours of scoring, not after them."""
    pictures.check(list(dict.fromkeys(sample.path for job in jobs for sample in job.todo())))
    for job in jobs:
        job.scorer.check([sample.record for sample in job.samples])


def _run(job: _Job) -> dict:
    name, found, out, scorer, lines = job
    todo = job.todo()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out)
    interval = 0.1 if sys.stderr.isatty() else 10
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(found), initial=len(found) - len(todo), desc=f"scoring {name}", mininterval=interval) as bar,
    ):
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            for line in _score_batch(scorer, name, batch):
                lines[line["filename"]] = line
                file.write(json.dumps(line) + "\n")
            file.flush()
            bar.update(len(batch))
    ordered = [lines[sample.name] for sample in found]
    files.write_text(out, "".join(json.dumps(line) + "\n" for line in ordered))
    partial.unlink()
    return summary(name, ordered)


def summary(name: str, lines: list[dict]) -> dict:
    """Score lines in figures: `mean`, `tags` (the mean of each), images, prompts, scorer (the fingerprint).

    Where lines have a verdict there is `correct_prompts` too, the share of prompts with a correct picture, by which the
    official summary of GenEval groups lines: their metadata.
    """
    order = scorer_class(name).tags
    tags = by_tag(lines)
    result = {
        "name": name,
        "mean": mean(lines, order),
        "tags": {tag: tags[tag] for tag in sorted(tags, key=lambda tag: order.index(tag) if tag in order else len(order))},
        "images": len(lines),
        "prompts": len({line["prompt_id"] for line in lines}),
        "scorer": lines[0]["scorer"],
    }
    if "correct" in lines[0]:
        correct: dict[str, bool] = defaultdict(bool)
        for line in lines:
            correct[line["metadata"]] |= line["correct"]
        result["correct_prompts"] = float(np.mean(list(correct.values())))
    return result


def by_tag(lines: list[dict]) -> dict[str, float]:
    """The mean score of every tag."""
    scores = defaultdict(list)
    for line in lines:
        scores[line["tag"]].append(line["score"])
    return {tag: float(np.mean(values)) for tag, values in scores.items()}


def mean(lines: list[dict], tags: tuple[str, ...]) -> float:
    """The mean score of all lines, or the unweighted mean of their tags' means where the scorer has `tags`."""
    return float(np.mean(list(by_tag(lines).values()) if tags else [line["score"] for line in lines]))


def print_summary(result: dict) -> None:
    """Print a summary, one figure a line; tags only where the mean is theirs."""
    tagged = bool(scorer_class(result["name"]).tags)
    left_out = f"; {result['left_out']} left out, whose prompts lack what it needs" if result.get("left_out") else ""
    print(f"{result['name']}: {result['images']} images of {result['prompts']} prompts{left_out}")
    for tag, value in result["tags"].items() if tagged else ():
        print(f"  {tag:<14} {value:.4f}")
    print(f"  {'overall' if tagged else 'mean':<14} {result['mean']:.4f}")
    if "correct_prompts" in result:
        print(f"  {'any correct':<14} {result['correct_prompts']:.4f} of prompts")
    print(f"  scorer: {result['scorer']}")


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _finished(partial: Path, fingerprint: str) -> dict[str, dict]:
    """The lines of an interrupted run by file name; a torn last line is cut off."""
    if not partial.exists():
        return {}
    whole, _, _ = partial.read_text(encoding="utf-8").rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    for line in lines:
        if line["scorer"] != fingerprint:
            raise InputError(f"{partial}: begun with another scorer, {line['scorer']!r}, not {fingerprint!r}; delete it")
    files.write_text(partial, "".join(json.dumps(line) + "\n" for line in lines))
    return {line["filename"]: line for line in lines}


def _score_batch(scorer: Scorer, name: str, batch: Sequence[Sample]) -> Iterator[dict]:
    results = scorer([pictures.read(sample.path) for sample in batch], [sample.record for sample in batch])
    for sample, result in zip(batch, results, strict=True):
        if not np.isfinite(result.score):
            raise ScorerFailed(f"{sample.path}: {name} gives it the score {result.score}; the lines before it stand")
        yield {
            "filename": sample.name,
            "tag": sample.record.tag,
            "prompt": sample.record.text,
            **result.as_dict(),
            "prompt_id": sample.record.id,
            "sample": sample.number,
            "scorer": scorer.fingerprint,
            "task": name,
        }
