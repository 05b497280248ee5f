"""Score folders of pictures, one JSON line a picture, resumable. star/scoring/samples.py says how prompts are found."""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from star import files
from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.scoring import pictures, samples
from star.scoring.guards import measure
from star.scoring.samples import Sample
from star.scoring.scorer import SUITE, Scorer, can_score, make_scorer
from star.scoring.summary import summary

_BATCH = 48
_NAMED = 5  # files that are named of those left out


class Wanted(NamedTuple):
    """Pictures to score, and where their scores and, unless None, their collapse guards go."""

    images: Path
    out: Path
    guards: Path | None = None


def score(name: str, images: Path, out: Path, scorers: Scorers, prompts: Path | None = None) -> dict:
    """Score one folder of pictures, as `score_folders` does."""
    return score_folders(name, [Wanted(images, out)], scorers, prompts)[0]


def score_folders(name: str, wanted: Sequence[Wanted], scorers: Scorers, prompts: Path | None = None) -> list[dict]:
    """Score every picture of some folders with the scorer `name` into JSON lines, a file a folder; returns the summaries.

    Scorers are loaded once, and everything is checked before the first picture is scored. Files are written when all folders
    are scored: a killed run leaves a `<out>.partial` for each that was begun, and goes on from them. Raises InputError, naming
    the file, for a missing folder, missing or wrong metadata or prompts, unreadable pictures, or a partial file of another
    scorer.
    """
    scorer_of = functools.cache(lambda other: make_scorer(other, scorers))
    jobs = []
    for images, out, _ in wanted:
        found = samples.find(images, name, prompts)
        jobs.append(_begin(name, found, out, scorer_of(name)))
    _check(jobs)
    for (images, _, _), job in zip(wanted, jobs, strict=True):
        _say_left_out(images, job.samples, prompts)
    for job in jobs:
        _run(job)
    for (_, _, guards), job in zip(wanted, jobs, strict=True):
        if guards is not None:
            files.write_json(guards, measure(name, job.samples, diversity=scorers.diversity, scorer_of=scorer_of))
    return [_finish(job) for job in jobs]


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
    for job in jobs.values():
        if job:
            _run(job)
    return {name: job and {**_finish(job), "left_out": counts[name]} for name, job in jobs.items()}


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


def _run(job: _Job) -> None:
    """Score what a job still lacks into its partial file."""
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


def _finish(job: _Job) -> dict:
    """Write a job's lines in the pictures' order; returns their summary."""
    ordered = [job.lines[sample.name] for sample in job.samples]
    files.write_text(job.out, "".join(json.dumps(line) + "\n" for line in ordered))
    _partial(job.out).unlink()
    return summary(job.name, ordered)


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
