"""What the package runs on: device, precision, machine, versions, revision of the code, and a torchvision that imports.

Nothing heavy is imported at the top: every stage is a process, and most need little.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError

if TYPE_CHECKING:
    import torch

    from star.config import PolicySettings

_TORCHVISION_OPERATORS = ("nms", "qnms")
_TORCHVISION_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def pick_device(name: str) -> "torch.device":
    """`auto`, `cpu` or `cuda` to a device. Raises InputError when CUDA is missing, or has no GPU for this process."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("policy.device: cuda is not available here; set policy.device to auto or cpu")
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device.type == "cuda" and number >= gpus:
        raise InputError(
            f"compute.processes: process {number} of this machine finds {gpus} GPU(s), and each needs its own; lower it"
        )
    return device


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 in hardware; where it does not, bfloat16 is many times slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))  # elsewhere nothing was measured


def pick_precision(policy: "PolicySettings") -> "torch.dtype":
    """The precision inside the transformer; `auto` is bfloat16 where the policy's device has it, else float32 (ours)."""
    import torch

    if policy.precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[policy.precision]
    return torch.bfloat16 if has_bfloat16(pick_device(policy.device)) else torch.float32


@cache
def declare_torchvision() -> object | None:
    """Make the registry's torchvision importable beside a CPU build of torch.

    EasyOCR needs torchvision, and the registry's is a CUDA build: beside CPU torch its C++ library does not load, its import
    then fails for want of two operator schemas, and with it transformers, diffusers and EasyOCR. With the schemas declared it
    imports and its Python parts work; the operators themselves (nms, roi_align, ...) do not, and none of ours or EasyOCR's
    calls one. To be called before transformers, diffusers or EasyOCR are imported. Returns the library that holds the schemas
    as long as it lives; None where nothing had to be done.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    if torch.version.cuda is not None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # what the failed import has left
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _TORCHVISION_OPERATORS:
        library.define(operator + _TORCHVISION_ARGUMENTS)
    return library


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
