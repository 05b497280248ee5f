"""`star doctor`: what a configuration needs, what is there, and what to do about the rest, one line each."""

import importlib.metadata
import importlib.util
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from star.config import Config
from star.torchvision_schemas import declare


def _packages() -> Iterator[tuple[bool, str]]:
    for requirement in importlib.metadata.requires("star-rl") or []:
        if "extra ==" in requirement:
            continue
        name = re.match(r"[\w.-]+", requirement).group()
        try:
            yield True, f"package {name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield False, f"package {name} is missing: run `make install`"
    if importlib.util.find_spec("torchvision") is not None:
        how = "beside a CPU build of torch: its operators are missing, its schemas are declared" if declare() else "works"
        yield True, f"package torchvision {importlib.metadata.version('torchvision')} {how}"


def _weights(config: Config) -> Iterator[tuple[bool, str]]:
    def place(key: str, name: str, marker: str) -> tuple[bool, str]:
        folder = Path(name)
        if (folder / marker).exists():
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
            return True, f"{key}: {folder}, {size:.1f} MB"
        if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
            return False, f"{key}: {name} has no {marker}: make it with `snakemake pretrain_miniature`, or name another folder"
        from huggingface_hub import try_to_load_from_cache

        revision = config.policy.revision if key == "policy.model" else None
        if isinstance(try_to_load_from_cache(name, marker, revision=revision), str):
            return True, f"{key}: {name} is in the hub cache"
        return False, f"{key}: {name} is not in the hub cache: accept its licence if it has one, `hf download {name}`"

    yield place("policy.model", config.policy.model, "model_index.json")
    if "pickscore" in {scorer for task in config.tasks.values() for scorer in task.reward}:
        yield place("scorers.pickscore_model", config.scorers.pickscore_model, "config.json")


def _machine(config: Config) -> Iterator[tuple[bool, str]]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield True, f"GPU {torch.cuda.get_device_name()}: {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    else:
        yield config.policy.device != "cuda", f"no GPU (policy.device is {config.policy.device})"
    results = Path(config.results)
    free = shutil.disk_usage(results if results.exists() else Path.cwd()).free / 2**30
    yield free > 2, f"disk: {free:.0f} GiB free for {results}/" + ("" if free > 2 else ": at least 2 are needed")
    database = results / "mlflow.db"
    if database.exists():
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            (runs,) = connection.execute("select count(*) from runs").fetchone()
        yield True, f"MLflow: {database} holds {runs} runs; compare them with `make ui`"
    else:
        yield True, f"MLflow: {database} will be made by the first run"


def examine(config: Config) -> int:
    """Print one line a check; returns 0 when everything needed is there, else 1."""
    good = True
    for check in (_packages(), _weights(config), _machine(config)):
        for fine, line in check:
            print(f"{'ok  ' if fine else 'FAIL'} {line}")
            good &= fine
    return 0 if good else 1
