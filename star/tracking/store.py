"""Where runs are mirrored to: the server that MLFLOW_TRACKING_URI names, or <results>/mlflow.db.

A sqlite database has one writer at a time: every access holds one file lock, so that any number of processes of one machine
may mirror at once.
"""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from star.config import Config
from star.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOCAL = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs"}
KIND = {"mlflow.experimentKind": "custom_model_development"}  # its pages show runs and charts, not traces and prompts


def uri(config: Config) -> str:
    """The tracking URI."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(config.results).resolve() / 'mlflow.db'}"


def _database(config: Config) -> Path | None:
    """The file of a sqlite database; None for a server."""
    address = uri(config)
    return Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:///") else None


def unsafe_while_training(config: Config) -> str | None:
    """Why trainings may not write to the store at once, or None: file locks of network file systems are not to be relied on."""
    database = _database(config)
    if database is None:
        return None
    folder = next(parent for parent in database.parents if parent.exists())
    holding = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
    system = max(holding, key=lambda p: len(p.mountpoint)).fstype
    return None if system in _LOCAL else f"{database} would lie on {system}, which is not known as a local file system"


@contextmanager
def client(config: Config, patience: float = -1) -> Iterator["MlflowClient"]:
    """An MLflow client; a sqlite database is held alone, after waiting for `patience` seconds at most (-1: for ever).

    Raises InputError when the database is of another version of MLflow, or none; OSError when the disk is full.
    """
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    from filelock import FileLock
    from mlflow import MlflowClient

    for talkative in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    database = _database(config)
    if database is None:
        yield MlflowClient(uri(config))
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock"), timeout=patience), _explained(database):
        yield MlflowClient(uri(config))


@contextmanager
def _explained(database: Path) -> Iterator[None]:
    """Turn what MLflow says of a database that it cannot use into InputError, and of a full disk into OSError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except (MlflowException, DatabaseError) as error:
        said = " ".join(str(error).split())
        if "disk is full" in said:
            raise OSError(errno.ENOSPC, "the disk is full", str(database)) from None
        if "database schema" in said or "locate revision" in said:
            raise InputError(
                f"{database}: made by another version of MLflow; copy it and run `mlflow db upgrade sqlite:///{database}` "
                "where it is an earlier one, or move it away: `snakemake --forcerun log` makes it again"
            ) from None
        if "not a database" in said or "malformed" in said:
            remedy = "move it away: `snakemake --forcerun log` makes it again"
            raise InputError(f"{database}: is no database that can be read; {remedy}") from None
        raise


def require_usable(config: Config) -> None:
    """Raise InputError when a database is there that MLflow cannot use; one that is missing is made later."""
    database = _database(config)
    if database is not None and database.exists():
        with client(config):
            pass


def experiment(client: "MlflowClient", config: Config, name: str, about: str) -> str:
    """The id of an experiment, made where there is none. Beside a database artifacts lie in mlartifacts/."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = _database(config)
        artifacts = (database.parent / "mlartifacts" / name).as_uri() if database else None
        return client.create_experiment(name, artifacts, {"mlflow.note.content": about, **KIND})
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in {"mlflow.note.content": about, **KIND}.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id
