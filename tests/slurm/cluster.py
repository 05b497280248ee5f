"""A real SLURM on this machine, which it takes for two, in a folder of its own, for as long as a `with` block or a command.

    python tests/slurm/cluster.py COMMAND ...      # runs COMMAND with sbatch, srun, squeue and scancel on that cluster

Debian's packages slurm-wlm and munge; `install` brings them where it may. Nothing outside the folder is touched: own key, own
configuration, own ports on loopback. The daemons run in the foreground as children and die with this process.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("node1", "node2")
GPUS = ("/dev/null", "/dev/zero")  # of each node; stand-ins: SLURM counts and hands out device files
_STARTED, _STOPPED = 60, 10  # seconds; SLURM itself kills what SIGTERM does not end in 30

# Partition `gpu` is that of workflow/profiles/slurm; jobs of `urgent` take its place, and the displaced job is queued again.
# config_overrides: a node has the memory and cores written here, whatever the machine has.
CONFIGURATION = """
ClusterName=star
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=ALL Default=YES State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def install() -> None:
    """Install SLURM and munge where they are missing. Raises SystemExit, saying what to do, where that needs another user."""
    if all(_program(name) for name in DAEMONS):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit(f"cluster.py: no {', '.join(DAEMONS)} here; as root: apt-get install {' '.join(PACKAGES)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "--quiet", "--quiet", *arguments], env=environment, check=True)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _write_configuration(folder: Path) -> None:
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(NODES))
    for name in ("state", "bin", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    cores = max(1, os.cpu_count() // len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=1000000 "
        f"Gres=gpu:{len(GPUS)} State=UNKNOWN"
        for node, port in zip(NODES, ports, strict=True)
    )
    configuration = CONFIGURATION.format(host=host, folder=folder, user=getpass.getuser(), controller=controller, nodes=nodes)
    (folder / "slurm.conf").write_text(configuration)
    gpus = "".join(f"NodeName={node} Name=gpu File={file}\n" for node in NODES for file in GPUS)
    (folder / "gres.conf").write_text(gpus)
    # Snakemake's jobs drop every SLURM_ variable but the job's number, SLURM_CONF too, before they call srun.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {_program("srun")} "$@"\n')
    srun.chmod(0o755)


@contextmanager
def _daemon(folder: Path, environment: dict[str, str], name: str, *arguments: str) -> Iterator[None]:
    with (folder / f"{name}.out").open("a") as out:
        command = ["setpriv", "--pdeathsig", "TERM", _program(name), *arguments]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOPPED)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(ready: Callable[[], bool], folder: Path, what: str) -> None:
    end = time.monotonic() + _STARTED
    while not ready():
        if time.monotonic() > end:
            logs = "".join(
                f"== {log.name}\n{log.read_text()[-2000:]}\n" for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            )
            raise RuntimeError(f"{what} is not ready after {_STARTED} s\n{logs}")
        time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start SLURM, yield the environment in which its commands work, end every job and daemon.

    Raises RuntimeError, with the end of the logs, when it does not start in a minute.
    """
    with tempfile.TemporaryDirectory(prefix="star-slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # munged demands it of the folder of its socket
        _write_configuration(folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        environment |= {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}

        def printed(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()

        options = ("socket", "key-file", "log-file", "pid-file", "seed-file")
        files = [f"--{option}={folder}/munge.{option.removesuffix('-file')}" for option in options]
        stack.enter_context(_daemon(folder, environment, "munged", "--foreground", "--num-threads=2", *files))
        _until((folder / "munge.socket").exists, folder, "munged")
        stack.enter_context(_daemon(folder, environment, "slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(_daemon(folder, environment, "slurmd", "-D", "-N", node))
        _until(lambda: set(printed("sinfo", "--noheader", "--format=%T").split()) == {"idle"}, folder, "a node")
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=True)
            _until(lambda: not printed("squeue", "--noheader"), folder, "the end of the last job")


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    install()
    with cluster() as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
