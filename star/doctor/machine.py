"""The machine: GPU and what it computes in, disk, and the MLflow database."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import chdir, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from star.config import Config
from star.scoring.scorer import needed

_LEAST = 2  # GiB on a disk that is written to


def check(config: Config) -> Iterator[tuple[bool, str]]:
    """One line a check."""
    yield from _gpu(config)
    yield disk(Path(config.results))
    yield _mlflow(Path(config.results) / "mlflow.db")


def _gpu(config: Config) -> Iterator[tuple[bool, str]]:
    import torch

    settings = {"policy.device": config.policy.device, "scorers.device": config.scorers.device}
    if not torch.cuda.is_available():
        for key, device in settings.items():
            fine = device != "cuda"
            yield (
                fine,
                f"{key}: {device}, " + ("there is no GPU" if fine else "but torch sees no GPU here; set it to auto or cpu"),
            )
    else:
        free, total = torch.cuda.mem_get_info()
        yield True, f"GPU {torch.cuda.get_device_name()}: {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        major, minor = torch.cuda.get_device_capability()
        if not _has_kernels(major, minor, torch.cuda.get_arch_list()):
            remedy = "set policy.device and scorers.device to cpu"
            yield False, f"GPU: this torch has no kernels for its generation, sm_{major}{minor}; {remedy}"
        asked, there = config.compute.processes // config.compute.machines, torch.cuda.device_count()
        if config.policy.device != "cpu" and asked > 1:
            fine = there >= asked
            yield fine, f"compute.processes: {asked} on a machine, {there} GPUs here" + ("" if fine else "; lower it")
    yield from _bfloat16(config)
    if "ocr" in needed(config) and config.scorers.ocr.engine == "rapidocr" and config.scorers.device == "cuda":
        import onnxruntime

        fine = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        yield fine, "onnxruntime on the GPU" + ("" if fine else " is missing: install onnxruntime-gpu, or scorers.device: auto")


def _has_kernels(major: int, minor: int, compiled: list[str]) -> bool:
    """Whether code was compiled for the GPU (sm: same major version, no later minor one) or can be (compute: no later)."""
    for name in compiled:
        kind, _, number = name.partition("_")
        if kind not in ("sm", "compute"):  # of another maker
            return True
        of = divmod(int(number.rstrip("af")), 10)
        if (kind == "sm" and of[0] == major and of[1] <= minor) or (kind == "compute" and of <= (major, minor)):
            return True
    return False


def _bfloat16(config: Config) -> Iterator[tuple[bool, str]]:
    import torch

    from star.runtime import has_bfloat16

    policy, scorers = config.policy, config.scorers
    precisions = {
        "policy.precision": (policy.precision, policy.device),
        "scorers.geneval.precision": (scorers.geneval.precision, scorers.device),
        "scorers.pickscore.precision": (scorers.pickscore.precision, scorers.device),
    }
    places = {"cpu": ("processor", " and is slow in it; use float32")}  # of `auto` without a GPU: perhaps a login node
    if torch.cuda.is_available():
        places |= {"cuda": ("GPU", "; use float16"), "auto": ("GPU", "; use float16")}
    for place, (name, remedy) in places.items():
        if keys := [key for key, (kind, on) in precisions.items() if kind == "bfloat16" and on == place]:
            fine = has_bfloat16(torch.device("cuda" if place == "auto" else place))
            yield (
                fine,
                f"{', '.join(keys)}: bfloat16, " + (f"which the {name} has" if fine else f"but this {name} lacks it{remedy}"),
            )


def disk(folder: Path) -> tuple[bool, str]:
    """Free space where `folder` is, or will be."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free / 2**30
    return free > _LEAST, f"disk: {free:.0f} GiB free for {folder}/" + ("" if free > _LEAST else f": make it {_LEAST} at least")


def _mlflow(database: Path) -> tuple[bool, str]:
    """The runs of the database, and MLflow's own verdict on its schema; it is opened to read only."""
    if not database.exists():
        return True, f"MLflow: {database} will be made by the first run"
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            (runs,) = connection.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()
        with TemporaryDirectory() as aside, chdir(aside):  # MLflow takes the address for a path and makes its folders
            MlflowClient(f"sqlite:///{address}&uri=true").search_experiments(max_results=1)
    except sqlite3.DatabaseError as error:
        return False, f"MLflow: {database} cannot be read ({error}): move it away, `snakemake --forcerun log` makes it again"
    except MlflowException as error:
        why = " ".join(str(error).split(". ")[0].split())
        return False, f"MLflow: {database}: {why}: `mlflow db upgrade sqlite:///{database}`"
    return True, f"MLflow: {database} holds {runs} runs; compare them with `make ui`"
