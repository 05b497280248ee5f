"""Packages: those of pyproject.toml in the versions that it asks for, and the extras that the configuration needs."""

import importlib.util
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from star.config import Config
from star.runtime import declare_torchvision
from star.scoring.scorer import needed

_INSTALL = {
    "": "run `make install`",
    "easyocr": "`pip install torch==2.13.0 -e '.[easyocr]'`, or set scorers.ocr.engine to rapidocr",
    "slurm": "`pip install -e '.[slurm]'`",
}


def check(config: Config) -> Iterator[tuple[bool, str]]:
    """One line a package, and whether torchvision can be imported."""
    extras = [""]
    if "ocr" in needed(config) and config.scorers.ocr.engine == "easyocr":
        extras.append("easyocr")
    for extra in extras:
        for requirement in requirements(extra):
            yield _package(requirement, _INSTALL[extra])
    for requirement in requirements("slurm"):
        fine, line = _package(requirement, _INSTALL["slurm"])
        yield True, line if fine else f"{line}; only `--workflow-profile slurm` needs it"
    if "geneval" in needed(config) and config.scorers.geneval.detector == "mmdet":
        for name in ("mmdet", "mmcv"):
            fine = importlib.util.find_spec(name) is not None
            yield fine, f"package {name}" + ("" if fine else " is missing: score in the environment of envs/mmdet.yaml")
    if importlib.util.find_spec("torchvision") is not None:
        how = (
            "beside a CPU build of torch: its operators are missing, its schemas are declared"
            if declare_torchvision()
            else "works"
        )
        yield True, f"package torchvision {metadata.version('torchvision')} {how}"


def requirements(extra: str) -> list[Requirement]:
    """What the project needs: by its metadata, or in a working tree that was not installed by pyproject.toml."""
    try:
        lines = metadata.requires("star-rl") or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        lines = [*project["dependencies"], *(f'{line}; extra == "{name}"' for name, found in extras for line in found)]
    found = [Requirement(line) for line in lines]
    if not extra:
        return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [r for r in found if r.marker and not r.marker.evaluate({"extra": ""}) and r.marker.evaluate({"extra": extra})]


def _package(requirement: Requirement, remedy: str) -> tuple[bool, str]:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False, f"package {requirement.name} is missing: {remedy}"
    fine = requirement.specifier.contains(version, prereleases=True)
    return fine, f"package {requirement.name} {version}" + ("" if fine else f" is not {requirement.specifier}: {remedy}")
