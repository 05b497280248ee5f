"""Checkpoints: `adapter/` to take away (EMA weights, a standard diffusers LoRA with alpha = rank), `state/` to resume from.

Every random number is derived from (seed, epoch, prompt, rollout), so the state holds weights, averages, optimizer and the
epoch, and no generator. A checkpoint appears whole or not at all: it is written beside its place and renamed.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from star.errors import InputError
from star.models import adapter
from star.models.adapter import ADAPTER_FILE
from star.training.learner import Captured, Learner


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sort_header(file: Path) -> None:
    """Order what safetensors writes in the random order of a hash map: the same weights are then the same file."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)  # the tensors are aligned; their places count from the header's end
    file.write_bytes(len(ordered).to_bytes(8, "little") + ordered + content[end:])


def save(folder: Path, learner: Learner, captured: Captured, epoch: int, digest: str) -> None:
    """Write the checkpoint `folder` of a captured learner atomically. `digest` names the settings it belongs to."""
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    state = draft / "state"
    state.mkdir(parents=True)
    save_file(captured.weights, state / "weights.safetensors")
    save_file({str(i): a for i, a in enumerate(captured.average)}, state / "average.safetensors")
    if captured.old:
        save_file({str(i): a for i, a in enumerate(captured.old)}, state / "old.safetensors")
    save_file(captured.optimizer, state / "optimizer.safetensors")
    model = learner.policy.model
    model.save_lora(draft / "adapter", *adapter.at_full_strength(captured.averaged, adapter.metadata(model.transformer)))
    _sort_header(draft / "adapter" / ADAPTER_FILE)
    files = {f.name: _sha256(f) for f in sorted(state.iterdir())} | {ADAPTER_FILE: _sha256(draft / "adapter" / ADAPTER_FILE)}
    progress = {
        "epoch": epoch,
        "optimizer_steps": captured.optimizer_steps,
        "scaler": captured.scaler,
        "settings": digest,
        "sha256": files,
    }
    (state / "progress.json").write_text(json.dumps(progress, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, the newest first."""
    return sorted(folder.glob("step*"), key=lambda f: -int(f.name.removeprefix("step")))


def prune(folder: Path, keep: int, published: set[int]) -> None:
    """Leave states of the newest `keep` checkpoints under `folder`; of the others the adapters of `published` epochs alone."""
    for checkpoint in _by_age(folder)[keep:]:
        if int(checkpoint.name.removeprefix("step")) not in published:
            shutil.rmtree(checkpoint)
        elif (state := checkpoint / "state").exists():
            (state / "progress.json").unlink(missing_ok=True)  # first: a state without it is no state
            shutil.rmtree(state)


def _intact(folder: Path) -> dict | None:
    """The progress of a checkpoint whose files are all there and unchanged, else None."""
    file = folder / "state" / "progress.json"
    try:
        progress = json.loads(file.read_text())
        files = [(folder / ("adapter" if n == ADAPTER_FILE else "state") / n, d) for n, d in progress["sha256"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return progress if all(part.exists() and _sha256(part) == digest for part, digest in files) else None


def newest(folder: Path, digest: str, epochs: int, start_over: bool) -> Path | None:
    """The newest intact checkpoint of at most `epochs` epochs under `folder`, or None.

    A damaged checkpoint is passed over with a line on standard error. One that belongs to other settings or weights raises
    InputError, or, to `start_over`, is removed with all the others.
    """
    for checkpoint in _by_age(folder):
        if not (checkpoint / "state" / "progress.json").exists():  # pruned
            continue
        progress = _intact(checkpoint)
        if progress is None:
            print(f"{checkpoint}: damaged, falling back to the one before", file=sys.stderr)
        elif progress["settings"] != digest:
            if not start_over:
                raise InputError(f"{checkpoint}: made with other settings or weights; remove {folder} or give --start-over")
            print(
                f"{checkpoint}: made with other settings or weights; {folder} is removed, training begins anew", file=sys.stderr
            )
            shutil.rmtree(folder)
            return None
        elif progress["epoch"] <= epochs:
            return checkpoint
    return None


def _by_position(file: Path) -> list[torch.Tensor]:
    stored = load_file(file)
    return [stored[str(i)] for i in range(len(stored))]


def resume(checkpoint: Path | None, learner: Learner) -> int:
    """Restore a checkpoint; returns its epoch, 0 when there is none."""
    if checkpoint is None:
        return 0
    state = checkpoint / "state"
    progress = json.loads((state / "progress.json").read_text())
    old = state / "old.safetensors"
    learner.restore(
        Captured(
            weights=load_file(state / "weights.safetensors"),
            averaged={},
            average=_by_position(state / "average.safetensors"),
            old=_by_position(old) if old.exists() else [],
            optimizer=load_file(state / "optimizer.safetensors"),
            scaler=progress["scaler"],
            optimizer_steps=progress["optimizer_steps"],
        )
    )
    return progress["epoch"]
