"""Whose Snakemake's lock is, so that the same command goes on after a kill, a closed terminal or a power cut.

Snakemake locks a folder by files in .snakemake/locks. They do not say whose they are, and stay behind when it is killed. A run
therefore notes itself in .snakemake/owners before it takes the lock: host, process, and when that process began, because
numbers of processes come again. Its jobs carry the same note in their environment.
"""

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from star.files import settle, write_text

LOCKS, OWNERS = Path(".snakemake/locks"), Path(".snakemake/owners")
MARK = "STAR_LOCK_OWNER"
_SHELLS = ("bash", "sh", "dash")


class Owner(NamedTuple):
    """A process; `boot` names the time since its machine was switched on, `began` is in clock ticks after that."""

    host: str
    process: int
    boot: str
    began: int

    @property
    def gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be seen, on another host."""
        if self.host != socket.gethostname():
            return None
        return self.boot != _boot() or _began(self.process) != self.began


def watch(workflow: object) -> None:
    """Have a run of this workflow look at the lock that an earlier one left, before Snakemake takes it.

    A lock whose owners on this host have ended is lifted with a line. The run raises WorkflowError, one line, where jobs of
    such an owner live on, and where the lock is another's. Dry runs and `--unlock` are left as they are.
    """
    from snakemake.exceptions import LockException, WorkflowError
    from snakemake_interface_executor_plugins.settings import ExecMode

    if workflow.exec_mode != ExecMode.DEFAULT:
        return
    execute = workflow.execute

    def execute_alone(executor_plugin: object, **more: object) -> object:
        if executor_plugin.common_settings.dryrun_exec or not workflow.execution_settings.lock:
            return execute(executor_plugin=executor_plugin, **more)
        note = note_oneself()
        try:
            if why := lift(note):
                raise WorkflowError(why)
            return execute(executor_plugin=executor_plugin, **more)
        except LockException:
            raise WorkflowError(explain(note)) from None
        finally:
            note.unlink(missing_ok=True)

    workflow.execute = execute_alone


def note_oneself() -> Path:
    """Note this process as an owner, in a file and in the environment of what it starts; returns the file."""
    owner = Owner(socket.gethostname(), os.getpid(), _boot(), _began(os.getpid()))
    os.environ[MARK] = _mark(owner)
    note = OWNERS / f"{owner.host}-{owner.process}.json"
    write_text(note, json.dumps(owner._asdict()))
    settle(OWNERS)
    return note


def lift(own: Path) -> str | None:
    """Lift the lock where all its owners have ended; returns why nothing may be started, or None."""
    owners = _others(own)
    ended = {note: owner for note, owner in owners.items() if owner.gone}
    jobs = list(_jobs(ended.values()))
    if jobs:
        named = ", ".join(f"{job.pid} ({_shortened(job.cmdline())})" for job in jobs)
        ends = " ".join(str(job.pid) for job in jobs)
        return (
            f"{Path.cwd()}: jobs of a snakemake that was killed here live on: {named}; nothing was started beside them. Wait "
            f"for them, or end them by `kill {ends}`, and give the same command again"
        )
    if not _locked() and ended:
        _forget(ended)
    elif _locked() and owners and len(ended) == len(owners):
        processes = ", ".join(str(owner.process) for owner in ended.values())
        shutil.rmtree(LOCKS)
        _forget(ended)
        print(f"Lifted the lock of a snakemake that was killed here (process {processes})", file=sys.stderr, flush=True)
    return None


def explain(own: Path) -> str:
    """One line that says whose the lock is that Snakemake found, and what to do."""
    unlock = shlex.join(["snakemake", *sys.argv[1:], "--unlock"])
    living = [owner for owner in _others(own).values() if not owner.gone]
    for owner in living:
        if owner.gone is None:
            return (
                f"{Path.cwd()}: locked by a snakemake on {owner.host} (process {owner.process}), which cannot be looked at "
                f"from here; when it has ended there, and its jobs too: {unlock}"
            )
    if living:
        return f"{Path.cwd()}: a snakemake is at work here (process {living[0].process}); wait for it, or stop it by Ctrl-C"
    return f"{Path.cwd()}: locked by a snakemake that left no note of itself; if none is at work here: {unlock}"


def _others(own: Path) -> dict[Path, Owner]:
    notes = (note for note in sorted(OWNERS.glob("*.json")) if note != own)
    return {note: Owner(**json.loads(note.read_text(encoding="utf-8"))) for note in notes}


def _locked() -> bool:
    return any(LOCKS.glob("*.lock"))


def _forget(owners: dict[Path, Owner]) -> None:
    for note in owners:
        note.unlink(missing_ok=True)


def _jobs(owners: object) -> Iterator[psutil.Process]:
    """The processes that carry one of the owners' marks: what shells run, not the shells, and not what those run in turn."""
    marks = {_mark(owner) for owner in owners}
    carriers = {process.pid: process for process in psutil.process_iter() if _carried(process) in marks} if marks else {}
    commands = {pid: process for pid, process in carriers.items() if process.name() not in _SHELLS}
    yield from (process for process in commands.values() if process.ppid() not in commands)


def _carried(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or one that just ended
        return None


def _mark(owner: Owner) -> str:
    return " ".join(map(str, owner))


def _shortened(command: list[str]) -> str:
    """A command without the interpreter before it."""
    at = command.index("star.cli") if "star.cli" in command else None
    words = ["star", *command[at + 1 :]] if at is not None else command
    said = shlex.join(words)
    return said if len(said) <= 100 else said[:97] + "..."


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _began(process: int) -> int | None:
    """When a process began, clock ticks after the machine; None for one that is not there any more."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])
