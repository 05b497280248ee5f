"""What an update changes: the adapter, its average, the optimizer and, in float16, the loss scale."""

import itertools
from dataclasses import dataclass

import torch

from star.config import Optimizer, Training
from star.errors import Diverged
from star.models.sd3 import Generator


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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimizer remembers, by `<position of the parameter>.<name>`. Rates and other settings are not in it."""
    return {f"{i}.{name}": t for i, state in optimizer.state_dict()["state"].items() for name, t in state.items()}


def set_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Let an optimizer with the same parameters and settings remember `optimizer_tensors`."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        i, name = key.split(".")
        states.setdefault(int(i), {})[name] = tensor
    position = itertools.count()
    groups = [group | {"params": [next(position) for _ in group["params"]]} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


@dataclass(frozen=True)
class Captured:
    """A learner at one moment, on the CPU: weights and averages by peft's names, averages by position, states, counts."""

    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]
    average: list[torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    scaler: dict
    optimizer_steps: int


class Learner:
    """A policy with a fresh adapter, its AdamW and its average. In float16 losses are scaled, as torch.amp does."""

    def __init__(self, policy: Generator, optimizer: Optimizer, training: Training, seed: int) -> None:
        self.policy, self.settings = policy, optimizer
        self.parameters = policy.add_adapter(seed)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self.ema = Ema(self.parameters, training.ema_decay, training.ema_every)
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.dtype == torch.float16)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a part of the loss."""
        self.scaler.scale(loss).backward()

    def step(self, epoch: int) -> tuple[float, float]:
        """One optimizer step on the added gradients, scaled down to `max_grad_norm`; returns their norm and the change's.

        With `update_norm` the weights change by exactly this norm, in the optimizer's direction.

        Raises Diverged on a gradient that is not finite, naming the parameter, before the weights are touched. In float16 that
        first means a loss scale that was too high: the step is left out and the scale halved, down to 1.
        """
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
        finite = bool(norm.isfinite())
        if finite:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)
        elif not self.scaler.is_enabled() or self.scaler.get_scale() <= 1:
            named = self.policy.transformer.named_parameters()
            bad = next(name for name, p in named if p.grad is not None and not p.grad.isfinite().all())
            raise Diverged(f"gradient of {bad} is not finite (epoch {epoch}); weights are untouched")
        before = [p.detach().clone() for p in self.parameters]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not finite:
            return 0.0, 0.0
        changed = self._changed(before, self.settings.update_norm)
        self.ema.after_step()
        return norm.item(), changed

    @torch.no_grad()
    def _changed(self, before: list[torch.Tensor], wanted: float | None) -> float:
        """The norm of the change since `before`, after it was scaled to the norm that is `wanted`, if any is."""
        changes = torch._foreach_sub([p.detach() for p in self.parameters], before)
        norm = torch.nn.utils.get_total_norm(changes).item()
        if wanted is None or norm == 0:
            return norm
        for p, start, change in zip(self.parameters, before, changes, strict=True):
            p.copy_(start + change * (wanted / norm))
        return wanted

    def capture(self) -> Captured:
        """A copy of everything."""

        def copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}

        weights = copy(self.policy.adapter_state())
        self.ema.swap()
        averaged = copy(self.policy.adapter_state())
        self.ema.swap()
        average = [a.to("cpu", copy=True) for a in self.ema.average]
        optimizer = copy(optimizer_tensors(self.optimizer))
        return Captured(weights, averaged, average, optimizer, self.scaler.state_dict(), self.ema.steps)

    def restore(self, captured: Captured) -> None:
        """Become what was captured; `averaged` follows from `average`."""
        self.policy.set_adapter_state(captured.weights)
        for average, kept in zip(self.ema.average, captured.average, strict=True):
            average.copy_(kept)
        self.ema.steps = captured.optimizer_steps
        set_optimizer_tensors(self.optimizer, captured.optimizer)
        self.scaler.load_state_dict(captured.scaler)
