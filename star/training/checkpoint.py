"""Checkpoints: `adapter/` to take away (EMA weights, a standard diffusers LoRA with alpha = rank), `state/` to resume from.

Every random number is derived from (seed, epoch, prompt, rollout), so the state holds weights, averages, optimizer and the
epoch, and no generator. A checkpoint appears whole or not at all: it is written beside its place and renamed.
"""

import errno
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from star.config import RunSettings, published_epochs
from star.config.key import training_key
from star.errors import InputError
from star.files import read_jsonl, settle, sha256, write_json, write_jsonl
from star.layout import ADAPTER_FILE, Run, epoch_of
from star.models import adapter
from star.runtime import pick_precision
from star.training.learner import Captured, Learner


def _sort_header(file: Path) -> None:
    """Order what safetensors writes in the random order of a hash map: the same weights are then the same file."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)  # the tensors are aligned; their places count from the header's end
    file.write_bytes(len(ordered).to_bytes(8, "little") + ordered + content[end:])


def save(folder: Path, learner: Learner, captured: Captured, epoch: int, key: str) -> None:
    """Write the checkpoint `folder` of a captured learner atomically. `key` names the settings it belongs to.

    It is on the disk before older ones are removed. Raises OSError on a full disk, and then leaves nothing behind.
    """
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write(draft, learner, captured, epoch, key)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft)
        raise OSError(errno.ENOSPC, f"not written ({error}); the checkpoints before it stand", str(folder)) from None
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def _write(draft: Path, learner: Learner, captured: Captured, epoch: int, key: str) -> None:
    state = draft / "state"
    state.mkdir(parents=True)
    save_file(captured.weights, state / "weights.safetensors")
    save_file({str(i): a for i, a in enumerate(captured.average)}, state / "average.safetensors")
    if captured.old:
        save_file({str(i): a for i, a in enumerate(captured.old)}, state / "old.safetensors")
    if captured.measured.numel():
        save_file({"measured": captured.measured}, state / "steps.safetensors")
    save_file(captured.optimizer, state / "optimizer.safetensors")
    model = learner.policy.model
    model.save_lora(draft / "adapter", *adapter.at_full_strength(captured.averaged, adapter.metadata(model.transformer)))
    _sort_header(draft / "adapter" / ADAPTER_FILE)
    files = {f.name: sha256(f) for f in sorted(state.iterdir())} | {ADAPTER_FILE: sha256(draft / "adapter" / ADAPTER_FILE)}
    progress = {
        "epoch": epoch,
        "optimizer_steps": captured.optimizer_steps,
        "scaler": captured.scaler,
        "settings": key,
        "step_backs": learner.step_backs,
        "sha256": files,
    }
    write_json(state / "progress.json", progress)
    settle(draft)


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, the newest first."""
    return sorted((f for f in folder.glob("epoch*") if epoch_of(f) is not None), key=lambda f: -epoch_of(f))


def prune(folder: Path, keep: int, published: set[int]) -> None:
    """Leave states of the newest `keep` checkpoints under `folder`; of the others the adapters of `published` epochs alone."""
    for checkpoint in _by_age(folder)[keep:]:
        if epoch_of(checkpoint) not in published:
            _remove(checkpoint)
        elif (state := checkpoint / "state").exists():
            (state / "progress.json").unlink(missing_ok=True)  # first: a state without it is no state
            shutil.rmtree(state)


def bytes_kept(settings: RunSettings, adapter: int, keeps_old: bool) -> dict[str, int]:
    """Bytes of the `states` and of the published `adapters` that a whole training keeps, one `adapter` having so many.

    A state is a checkpoint with its own adapter: weights, average, two moments of AdamW and, with `keeps_old`, the old policy's
    weights, all float32. There is one more than is kept, while it is written.
    """
    states = settings.checkpoints.keep_states + 1
    return {"states": states * (5 + keeps_old) * adapter, "adapters": len(published_epochs(settings)) * adapter}


def _remove(checkpoint: Path) -> None:
    (checkpoint / "state" / "progress.json").unlink(missing_ok=True)  # first: a state without it is no state
    shutil.rmtree(checkpoint)


def step_backs(run: Run) -> list[dict]:
    """The training's step backs so far: `epoch` that diverged, `to` which it went back, `factor` of the rate, and `why`."""
    return read_jsonl(run.step_backs) if run.step_backs.exists() else []


def step_back(run: Run, key: str, epoch: int, *, factor: float, why: str) -> Path | None:
    """Note that `epoch` diverged and leave what came after the state to go back to; returns its checkpoint, None: untrained.

    It is the newest state from before the last whole epoch, because the epoch after the newest may have diverged by what that
    state holds. Where none is left it is the newest, or in the first two epochs the untrained model. Killed at any moment in
    it, the training resumes as if it had been done, or not begun.
    """
    found = newest(run, key, epoch - 2, start_over=False) or (
        newest(run, key, epoch - 1, start_over=False) if epoch > 2 else None
    )
    to = 0 if found is None else epoch_of(found)
    write_jsonl(run.step_backs, [*step_backs(run), {"epoch": epoch, "to": to, "factor": factor, "why": why}])
    return newest(run, key, epoch, start_over=False)


def _left_behind(progress: dict, history: list[dict]) -> bool:
    """Whether a later step back went to an earlier epoch than a checkpoint's."""
    return any(progress["epoch"] > later["to"] for later in history[progress.get("step_backs", 0) :])


def _intact(folder: Path) -> dict | None:
    """The progress of a checkpoint whose files are all there and unchanged, else None."""
    file = folder / "state" / "progress.json"
    try:
        progress = json.loads(file.read_text(encoding="utf-8"))
        files = [(folder / ("adapter" if n == ADAPTER_FILE else "state") / n, d) for n, d in progress["sha256"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return progress if all(part.exists() and sha256(part) == digest for part, digest in files) else None


def key_of(settings: RunSettings) -> str:
    """The key of the settings; with precision `auto` also what that is here, in which the training must go on."""
    chosen = f"-{str(pick_precision(settings.policy)).removeprefix('torch.')}" if settings.policy.precision == "auto" else ""
    return training_key(settings) + chosen


def newest(run: Run, key: str, epochs: int, start_over: bool) -> Path | None:
    """The newest intact checkpoint of at most `epochs` epochs of a run, or None.

    A damaged checkpoint is passed over with a line on standard error, and renamed: <name>.damaged. Checkpoints of another key
    raise InputError, or, to `start_over`, are renamed together with what else is known of their training: checkpoints.<key>.
    Removed are only those that a step back of the training has left behind.
    """
    found, ours, history = None, False, step_backs(run)
    for checkpoint in _by_age(run.checkpoints):
        if not (checkpoint / "state" / "progress.json").exists():  # pruned
            continue
        progress = _intact(checkpoint)
        if progress is None:
            aside = _free(checkpoint.with_name(f"{checkpoint.name}.damaged"))
            checkpoint.rename(aside)
            print(f"{checkpoint}: damaged, renamed to {aside.name}; falling back to the one before", file=sys.stderr)
        elif progress["settings"] != key:
            return _of_others(run, str(progress["settings"]), start_over)
        elif _left_behind(progress, history):
            _remove(checkpoint)
            ours = True
        elif progress["epoch"] <= epochs:
            found, ours = checkpoint, True
            break
        else:
            ours = True
    if not ours and (others := _nobodys(run.checkpoints)):
        return _of_others(run, others, start_over)
    return found


def _nobodys(folder: Path) -> str | None:
    """A name for checkpoints that no key is known of: those of earlier versions, or adapters alone; None where none is."""
    for older in sorted(folder.glob("step*/state/progress.json")):
        return str(json.loads(older.read_text(encoding="utf-8")).get("settings", "unknown"))
    return "unknown" if _by_age(folder) or any(folder.glob("step*")) else None


def _of_others(run: Run, key: str, start_over: bool) -> None:
    """Set the checkpoints of another key aside, with metrics and settings of their training. Raises InputError as `newest`."""
    aside = _free(run.folder / f"checkpoints.{re.sub('[^A-Za-z0-9-]', '-', key)}")
    if not start_over:
        raise InputError(
            f"{run.checkpoints}: made with other settings or weights, or by an earlier version; give --start-over, which keeps "
            f"them as {aside.name}, or name another folder"
        )
    run.checkpoints.rename(aside)
    for file in (run.metrics, run.settings, run.environment):
        if file.exists():
            file.rename(aside / file.name)
    print(
        f"{run.checkpoints}: made with other settings or weights, or by an earlier version; kept as {aside}, and training "
        "begins anew",
        file=sys.stderr,
    )


def _free(path: Path) -> Path:
    """The path, with a number where it is taken."""
    numbers = itertools.count(2)
    while path.exists():
        path = path.with_name(f"{path.name.partition('~')[0]}~{next(numbers)}")
    return path


def _by_position(file: Path) -> list[torch.Tensor]:
    stored = load_file(file)
    return [stored[str(i)] for i in range(len(stored))]


def resume(checkpoint: Path | None, learner: Learner) -> int:
    """Restore a checkpoint, but for the rate; returns its epoch, 0 when there is none."""
    if checkpoint is None:
        return 0
    state = checkpoint / "state"
    progress = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    old, steps = state / "old.safetensors", state / "steps.safetensors"
    learner.restore(
        Captured(
            weights=load_file(state / "weights.safetensors"),
            averaged={},
            average=_by_position(state / "average.safetensors"),
            old=_by_position(old) if old.exists() else [],
            optimizer=load_file(state / "optimizer.safetensors"),
            scaler=progress["scaler"],
            optimizer_steps=progress["optimizer_steps"],
            measured=load_file(steps)["measured"] if steps.exists() else learner.measured.table,
        )
    )
    return progress["epoch"]
