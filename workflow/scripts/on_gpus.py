"""on_gpus.py N COMMAND...: become COMMAND, on N GPUs of this machine that no other job of this user has.

Jobs side by side would otherwise all meet on the first GPU. Where N or fewer are to be seen (one GPU, a SLURM job, a CPU)
there is nothing to choose. A GPU is taken by a lock on a file, which the system frees however the command ends.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; of several drivers NVIDIA's alone."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    gpus = re.findall(r"UUID: (GPU-[^)\s]+)", listed)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    return [gpus[int(gpu)] if gpu.isdigit() else gpu for gpu in chosen.split(",") if gpu]


def take(gpus: list[str], wanted: int) -> list[str]:
    """Lock `wanted` of the GPUs for as long as this process lives, all at once, waiting until so many are free."""
    while True:
        held: dict[str, int] = {}
        for gpu in gpus:
            file = os.open(Path(tempfile.gettempdir(), f"star-{os.getuid()}-{gpu}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            held[gpu] = file
            if len(held) == wanted:
                for file in held.values():
                    os.set_inheritable(file, True)  # the lock outlives this program, not the command
                return list(held)
        for file in held.values():
            os.close(file)
        time.sleep(0.5)


def main() -> None:
    wanted, command = int(sys.argv[1]), sys.argv[2:]
    gpus = visible()
    if 0 < wanted < len(gpus):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(take(gpus, wanted))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
