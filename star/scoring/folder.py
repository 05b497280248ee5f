"""Score a folder of sampled pictures in GenEval's layout, one JSON line a picture, resumable.

The layout is `00000/metadata.jsonl` (one JSON line) and `00000/samples/0000.png`; the folder's number is the prompt's line.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from star.config import Scorers
from star.errors import InputError
from star.scoring import Scorer, make_scorer

_BATCH = 48
_OURS = ("id", "task", "core")  # keys of a metadata line that are the project's, not GenEval's


def score(task: str, images: Path, out: Path, scorers: Scorers) -> dict:
    """Score every picture under `images` with the scorer of `task` and write `out` (JSON lines); returns the `summary`.

    A killed run leaves `<out>.partial` and goes on from it. Raises InputError, naming the file, for a missing folder,
    missing or wrong metadata, an unreadable picture, or a partial file of another scorer.
    """
    samples = [(path, record) for folder in _folders(images) for path, record in _samples(folder, task)]
    partial = out.with_name(out.name + ".partial")
    scorer = make_scorer(task, scorers)
    lines = _finished(partial, scorer.fingerprint)
    scorer.check([record for _, record in samples])
    names = [path.relative_to(images).as_posix() for path, _ in samples]
    todo = [i for i, name in enumerate(names) if name not in lines]
    for i in todo:
        _verify(samples[i][0])
    out.parent.mkdir(parents=True, exist_ok=True)
    interval = 0.1 if sys.stderr.isatty() else 10
    with (
        partial.open("a") as file,
        tqdm(total=len(samples), initial=len(samples) - len(todo), desc=f"scoring {task}", mininterval=interval) as bar,
    ):
        for start in range(0, len(todo), _BATCH):
            rows = todo[start : start + _BATCH]
            for i, line in zip(rows, _score_batch(scorer, task, [samples[i] for i in rows]), strict=True):
                lines[names[i]] = {"filename": names[i], **line}
                file.write(json.dumps(lines[names[i]]) + "\n")
            file.flush()
            bar.update(len(rows))
    ordered = [lines[name] for name in names]
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
    prompts = len({line["prompt_id"] for line in lines})
    return {
        "task": task,
        "mean": float(mean),
        "tags": tags,
        "images": len(lines),
        "prompts": prompts,
        "scorer": lines[0]["scorer"],
    }


def print_summary(result: dict) -> None:
    """Print a summary, one figure a line; tags only for geneval, in the suite's order."""
    print(f"{result['task']}: {result['images']} images of {result['prompts']} prompts")
    if result["task"] == "geneval":
        from star.scoring.geneval import TAGS

        for tag in sorted(result["tags"], key=TAGS.index):
            print(f"  {tag:<14} {result['tags'][tag]:.4f}")
    print(f"  {'overall' if result['task'] == 'geneval' else 'mean':<14} {result['mean']:.4f}")
    print(f"  scorer: {result['scorer']}")


def _folders(images: Path) -> list[Path]:
    folders = sorted(p for p in images.glob("*") if p.is_dir() and p.name.isdigit())
    if not folders:
        raise InputError(f"{images}: no folders 00000, 00001, ... of pictures; make them with `star sample --out {images}`")
    return folders


def _samples(folder: Path, task: str) -> Iterator[tuple[Path, dict]]:
    described = folder / "metadata.jsonl"
    try:
        metadata = json.loads(described.read_text())
        prompt = metadata["prompt"]
    except FileNotFoundError:
        raise InputError(f"{described}: missing; every folder of pictures needs its prompt's metadata") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{described}: not one line of JSON; write it again with `star sample`") from None
    except (KeyError, TypeError):
        raise InputError(f"{described}: no `prompt` key; write it again with `star sample`") from None
    record = {
        "id": metadata.get("id", f"{task}-{folder.name}"),
        "tag": metadata.get("tag", task),
        "prompt": prompt,
        "metadata": {key: value for key, value in metadata.items() if key not in _OURS},
    }
    pictures = sorted((folder / "samples").glob("*.png"))
    if not pictures:
        raise InputError(f"{folder / 'samples'}: no pictures (0000.png, ...); sample them again")
    for path in pictures:
        if not path.stem.isdigit():
            raise InputError(f"{path}: a picture's name is its number, as in 0000.png")
        yield path, record


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


def _verify(path: Path) -> None:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise InputError(f"{path}: not a readable picture ({error}); sample it again") from None


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def _score_batch(scorer: Scorer, task: str, samples: list[tuple[Path, dict]]) -> Iterator[dict]:
    results = scorer([_read(path) for path, _ in samples], [record for _, record in samples])
    for (path, record), result in zip(samples, results, strict=True):
        yield {
            "tag": record["tag"],
            "prompt": record["prompt"],
            **result,
            "prompt_id": record["id"],
            "sample": int(path.stem),
            "scorer": scorer.fingerprint,
            "task": task,
        }
