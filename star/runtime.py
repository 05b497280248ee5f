"""What a training or a benchmark ran on: machine, versions, revision of the code."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def environment(device: "torch.device") -> dict[str, str | int | None]:
    """Machine and versions: cpu, cores (that this process may use), memory_gib, gpu, system, python, torch, diffusers."""
    import torch

    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
    }


def processor() -> str:
    """The processor's name as Linux tells it, elsewhere what the platform module knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def revision() -> str | None:
    """The git commit of this package, with `-dirty` behind it when a file was changed; None where it is not in git."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__)

    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=False)

    if git("ls-files", "--error-unmatch", here.name).returncode:
        return None
    dirty = "-dirty" if git("status", "--porcelain", "--", ".").stdout.strip() else ""
    return git("rev-parse", "HEAD").stdout.strip() + dirty
