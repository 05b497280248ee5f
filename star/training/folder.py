"""The folder of a training: held by one training at a time, its metrics kept by epoch, its disk looked at before work.

The lock is one of the system's on a file, which the system drops however the process ends. A file system that has no such
locks, as some network ones, is said; so is what then has to be seen to.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from star.config import RunSettings
from star.errors import InputError
from star.files import require_free, require_writable, write_text
from star.layout import Run
from star.training.checkpoint import bytes_kept
from star.training.learner import Learner

LOCK = "training.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made where it is missing, alone.

    Raises InputError, naming the folder, when another training holds it, and when it cannot be written.
    """
    require_writable(folder, folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder}: another training is at work in this folder; wait for it, end it, or name another folder with --out"
        ) from None
    except (NotImplementedError, OSError) as error:
        print(f"{folder}: cannot be locked here ({error}); see that no other training works in it", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def require_disk(run: Run, learner: Learner, settings: RunSettings) -> None:
    """Raise InputError when checkpoints that are still to come do not fit on the disk: states to resume from, and adapters."""
    needed = bytes_kept(settings, 4 * sum(p.numel() for p in learner.parameters), bool(learner.old))
    there = sum(file.stat().st_size for file in run.checkpoints.rglob("*.safetensors"))
    one = needed["states"] // (settings.checkpoints.keep_states + 1)
    require_free(run.folder, max(sum(needed.values()) - there, one), "checkpoints; checkpoints.keep_states says how many")


def keep_epochs(file: Path, done: int) -> None:
    """Leave in a metrics.jsonl the line of each epoch up to `done`, by their numbers; those after it are done again.

    Of an epoch that stands there several times, as after two trainings in one folder, the last line is kept. What is no whole
    line, as after a power cut, goes. Raises InputError when an epoch is missing, because nothing could bring it back.
    """
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    lines = {}
    for line in text.split("\n")[:-1]:
        epoch = _epoch_of(line)
        if epoch is not None and 1 <= epoch <= done:
            lines[epoch] = line
    missing = [epoch for epoch in range(1, done + 1) if epoch not in lines]
    if missing:
        named = ", ".join(map(str, missing[:5])) + (" and more" if missing[5:] else "")
        raise InputError(
            f"{file}: no line of epoch {named}, but a checkpoint of epoch {done}; to train again from the start move "
            f"{file.parent / 'checkpoints'} away"
        )
    write_text(file, "".join(lines[epoch] + "\n" for epoch in sorted(lines)))


def _epoch_of(line: str) -> int | None:
    """The epoch of a line of metrics, None for one that was torn."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    epoch = row.get("epoch") if isinstance(row, dict) else None
    return epoch if isinstance(epoch, int) else None


def add_line(file: Path, row: dict) -> None:
    """Add an epoch's line; it is on the disk when this returns, before a checkpoint can say that the epoch is done."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
