"""on_gpus.py N COMMAND...: become COMMAND, on N of the machine's GPUs that no other such job of this user has.

Jobs side by side would otherwise all meet on the first GPU. Without a GPU, or with fewer than N, the command runs as it is; so
it does in a SLURM job that sees just N, which SLURM gave it. A GPU is taken by a lock on a file, which the system frees
however the command ends.
"""

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible() -> dict[str, str]:
    """The GPUs that this process may use: what CUDA_VISIBLE_DEVICES calls them -> what the driver does."""
    listed = (
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if shutil.which("nvidia-smi")
        else None
    )
    if listed is None or listed.returncode:  # no driver, so no GPU
        return {}
    gpus = re.findall(r"UUID: (GPU-[^)\s]+)", listed.stdout)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return dict(zip(gpus, gpus, strict=True))
    found: dict[str, str] = {}
    for name in map(str.strip, chosen.split(",")):
        if name.isdigit() and int(name) < len(gpus):
            found[name] = gpus[int(name)]
        elif name.startswith(("GPU-", "MIG-")):
            found[name] = next((gpu for gpu in gpus if gpu.startswith(name)), name)
        else:  # CUDA, too, leaves out what follows
            break
    return found


def take(gpus: dict[str, str], wanted: int) -> list[str]:
    """Lock `wanted` of the GPUs for as long as the command runs, all at once, waiting until so many are free."""
    waiting = False
    while True:
        held: dict[str, int] = {}
        for name, gpu in gpus.items():
            lock = Path(tempfile.gettempdir(), f"star-{os.getuid()}-{re.sub('[^A-Za-z0-9-]', '-', gpu)}.lock")
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            held[name] = file
            if len(held) == wanted:
                for file in held.values():
                    os.set_inheritable(file, True)  # the lock outlives this program, not the command
                return list(held)
        for file in held.values():
            os.close(file)
        if not waiting:
            print(f"waiting for {wanted} of {len(gpus)} GPUs, which other jobs have", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(random.uniform(0.3, 0.7))


def main() -> None:
    wanted, command = int(sys.argv[1]), sys.argv[2:]
    gpus = visible()
    given = "SLURM_JOB_ID" in os.environ and wanted == len(gpus)
    if wanted <= len(gpus) and not given:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(take(gpus, wanted))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
