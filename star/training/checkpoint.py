"""Checkpoints: `adapter/` to take away (EMA weights, a standard diffusers LoRA), `state/` to resume from.

Every random number is derived from (seed, epoch, prompt, rollout), so the state holds weights, averages, optimizer and the
epoch, and no generator. A checkpoint appears whole or not at all: it is written beside its place and renamed.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from safetensors.torch import load_file, save_file

from star.errors import InputError
from star.policy.generator import ADAPTER_FILE, Generator


class Ema:
    """An average of parameters, every few optimizer steps s with decay min((1 + s) / (10 + s), decay)."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float, every: int) -> None:
        self.parameters, self.decay, self.every, self.steps = parameters, decay, every, 0
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def after_step(self) -> None:
        """Count an optimizer step and average when it is time."""
        self.steps += 1
        if self.steps % self.every == 0:
            decay = min((1 + self.steps) / (10 + self.steps), self.decay)
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and parameters; call it twice to come back."""
        for average, p in zip(self.average, self.parameters, strict=True):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def save(folder: Path, policy: Generator, ema: Ema, optimizer: torch.optim.Optimizer, epoch: int, digest: str) -> None:
    """Write the checkpoint `folder` atomically. `digest` names the settings it belongs to."""
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    state = draft / "state"
    state.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in policy.adapter_state().items()}, state / "weights.safetensors")
    ema.swap()
    try:
        averaged = {k: v.detach().clone().contiguous() for k, v in policy.adapter_state().items()}
    finally:
        ema.swap()
    StableDiffusion3Pipeline.save_lora_weights(
        draft / "adapter",
        transformer_lora_layers=averaged,
        **_collate_lora_metadata({"transformer": policy.transformer}),
    )
    save_file({str(i): a for i, a in enumerate(ema.average)}, state / "average.safetensors")
    torch.save(optimizer.state_dict(), state / "optimizer.pt")
    files = {f.name: _sha256(f) for f in sorted(state.iterdir())} | {ADAPTER_FILE: _sha256(draft / "adapter" / ADAPTER_FILE)}
    progress = {"epoch": epoch, "optimizer_steps": ema.steps, "settings": digest, "sha256": files}
    (state / "progress.json").write_text(json.dumps(progress, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def _intact(folder: Path) -> dict | None:
    """The progress of a checkpoint whose files are all there and unchanged, else None."""
    file = folder / "state" / "progress.json"
    if not file.exists():
        return None
    progress = json.loads(file.read_text())
    for name, digest in progress["sha256"].items():
        part = folder / ("adapter" if name == ADAPTER_FILE else "state") / name
        if not part.exists() or _sha256(part) != digest:
            return None
    return progress


def newest(folder: Path, digest: str, epochs: int, start_over: bool) -> Path | None:
    """The newest intact checkpoint of at most `epochs` epochs under `folder`, or None.

    A damaged checkpoint is passed over with a line on standard error. One that belongs to other settings or weights raises
    InputError, or, to `start_over`, is removed.
    """
    for checkpoint in sorted(folder.glob("step*"), key=lambda f: -int(f.name.removeprefix("step"))):
        progress = _intact(checkpoint)
        if progress is None:
            print(f"{checkpoint}: damaged, falling back to the one before", file=sys.stderr)
        elif progress["settings"] != digest:
            if not start_over:
                raise InputError(f"{checkpoint}: made with other settings or weights; remove {folder} or give --start-over")
            shutil.rmtree(checkpoint)
        elif progress["epoch"] <= epochs:
            return checkpoint
    return None


def resume(checkpoint: Path | None, policy: Generator, ema: Ema, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint; returns its epoch, 0 when there is none."""
    if checkpoint is None:
        return 0
    state = checkpoint / "state"
    progress = json.loads((state / "progress.json").read_text())
    policy.set_adapter_state(load_file(state / "weights.safetensors"))
    stored = load_file(state / "average.safetensors")
    for i, average in enumerate(ema.average):
        average.copy_(stored[str(i)])
    ema.steps = progress["optimizer_steps"]
    optimizer.load_state_dict(torch.load(state / "optimizer.pt", weights_only=True))
    return progress["epoch"]
