"""Whole-file writes, JSON lines and digests of files: the one copy of each.

A file appears whole or not at all: it is written beside its place, under a name with this process's id, put on the disk and
renamed. Text is UTF-8, whatever the machine's locale.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffix, to be written by the caller; renamed to `path` unless the caller raised.

    Makes the folder where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        _settle(draft)
        draft.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is met while writing, which does not know the name
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with whole(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON lines, an object a line, letters of other scripts as they are."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a JSON-lines file. Raises InputError, naming file and line, when it is missing or a line is no object."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from None
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); delete the file and rerun its rule") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: not a JSON object; delete the file and rerun its rule")
        rows.append(row)
    return rows


def settle(folder: Path) -> None:
    """Have everything under a folder on the disk when this returns, so that no power cut takes it away."""
    for path in (*folder.rglob("*"), folder):
        _settle(path)


def _settle(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# What a disk says of a place that cannot be written, or no longer.
UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def require_writable(path: Path, folder: bool = False) -> None:
    """Raise InputError when a file, or a `folder` with files in it, cannot be written at `path`; nothing is left there."""
    path = Path(path)
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, a folder is needed; name another place")
    if not folder and path.is_dir():
        raise InputError(f"{path}: is a folder, a file is needed; name one in it")
    there = path if folder and path.is_dir() else _nearest(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({there}: {error.strerror}); name another place") from None


def require_free(path: Path, needed: float, what: str) -> None:
    """Raise InputError when the disk of a folder, which need not be there yet, has less than `needed` bytes free for `what`."""
    free = shutil.disk_usage(Path(path) if Path(path).is_dir() else _nearest(path)).free
    if free < needed:
        raise InputError(
            f"{path}: its disk has {free / 2**30:.2f} GiB free, and {needed / 2**30:.2f} are needed for {what}; free some, or "
            "name another place"
        )


def _nearest(path: Path) -> Path:
    """The nearest thing above a path that exists."""
    return next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
