"""What an update changes: the adapter, its average, the optimizer and, in float16, the loss scale."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from star.allocation.time import Measured
from star.config import Optimizer, Training
from star.errors import Diverged
from star.models import adapter
from star.models.policy import Policy


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
    """A learner at one moment, on the CPU: weights and averages by peft's names, averages by position, states, counts.

    `old` has the old policy's weights by position; empty where the objective keeps none. `measured` is the table of what was
    measured of the steps' gradients.
    """

    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]
    average: list[torch.Tensor]
    old: list[torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    scaler: dict
    optimizer_steps: int
    measured: torch.Tensor


class Learner:
    """A policy with a fresh adapter, its AdamW and its average. In float16 losses are scaled, as torch.amp does.

    With `keeps_old` there is an old policy beside it, other weights of the same adapter, which starts as the policy does. The
    gradients of `steps` steps are kept apart until they are measured; of none by default.
    """

    def __init__(
        self, policy: Policy, optimizer: Optimizer, training: Training, *, keeps_old: bool = False, steps: int = 0
    ) -> None:
        self.policy, self.settings = policy, optimizer
        self.parameters = policy.parameters
        self.old = [p.detach().clone() for p in self.parameters] if keeps_old else []
        self.measured = Measured.nothing(steps)
        self.apart: dict[int, list[torch.Tensor]] = {}  # gradients by step
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self.ema = Ema(self.parameters, training.ema_decay, training.ema_every)
        self.scaler = self._new_scaler()
        self.step_backs = 0

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.policy.device.type, enabled=self.policy.model.dtype == torch.float16)

    def slow_down(self, factor: float) -> None:
        """Learn by smaller steps from here on: `factor` times the rate, and times the norm that a change is scaled to."""
        self.step_backs += 1
        rate, norm = self.settings.learning_rate * factor, self.settings.update_norm
        changed = {"learning_rate": rate, "update_norm": None if norm is None else norm * factor}
        self.settings = self.settings.model_copy(update=changed)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def old_policy(self) -> AbstractContextManager:
        """Inside, the policy has the old policy's weights."""
        return self.policy.using(self.old)

    @torch.no_grad()
    def move_old(self, decay: float) -> None:
        """Old weights = decay x old weights + (1 - decay) x weights."""
        torch._foreach_lerp_(self.old, [p.detach() for p in self.parameters], 1 - decay)

    def backward(self, loss: torch.Tensor, step: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Add the gradient of a part of the loss, which belongs to a step; zero where the loss does not depend on a parameter.

        Returns the norm of what was added, and its `signal`.
        """
        if self.measures:
            self._be_gradient(self.apart.get(step, [None] * len(self.parameters)))
        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        self.scaler.scale(loss).backward()
        for parameter in self.parameters:
            if parameter.grad is None:  # what follows the last attention of a text stream reaches no picture
                parameter.grad = torch.zeros_like(parameter)
        added = [p.grad if b is None else p.grad - b for p, b in zip(self.parameters, before, strict=True)]
        if self.measures:
            self.apart[step] = [p.grad for p in self.parameters]
        return torch.nn.utils.get_total_norm(added) / self.scaler.get_scale(), self._cosine_with_momentum(added)

    @property
    def measures(self) -> bool:
        """Whether the gradients of steps are kept apart."""
        return self.measured.table.shape[1] > 0

    def _be_gradient(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient

    @torch.no_grad()
    def join_steps(self, weight_of: dict[int, float], add: Callable[[list[torch.nn.Parameter]], None]) -> None:
        """Add up the steps' gradients, each summed over the processes by `add`, and note their norms and projections.

        `weight_of` has the weights that are in them; what is noted is of weight 1. Gradients that are not finite are not noted.
        """
        whole: list[torch.Tensor] = []
        for step in sorted(self.apart):
            gradients = self.apart.pop(step)
            self._be_gradient(gradients)
            add(self.parameters)
            unit = self.scaler.get_scale() * weight_of[step]
            norm, projection = torch.nn.utils.get_total_norm(gradients).item() / unit, self._projection(gradients)
            if math.isfinite(norm):
                self.measured.observe(step, norm, None if projection is None else projection.item() / unit)
            whole = torch._foreach_add(whole, gradients) if whole else gradients
        self._be_gradient(whole)

    def signal(self) -> torch.Tensor | None:
        """The cosine of the added gradients with AdamW's momentum, -1..1; None before the first optimizer step.

        Near 0 the gradients of successive updates have nothing in common. A gradient that is not finite gives 0.
        """
        return self._cosine_with_momentum([p.grad for p in self.parameters])

    @torch.no_grad()
    def _projection(self, gradients: list[torch.Tensor]) -> torch.Tensor | None:
        """Gradients on the direction of AdamW's momentum; None before the first optimizer step."""
        if not self.optimizer.state:
            return None
        momenta = [self.optimizer.state[p]["exp_avg"] for p in self.parameters]
        inner = torch.stack([(g * m).sum() for g, m in zip(gradients, momenta, strict=True)]).sum()
        return inner / torch.nn.utils.get_total_norm(momenta)

    def _cosine_with_momentum(self, gradients: list[torch.Tensor]) -> torch.Tensor | None:
        projection = self._projection(gradients)
        if projection is None:
            return None
        cosine = projection / torch.nn.utils.get_total_norm(gradients).detach()
        return torch.nan_to_num(cosine, nan=0.0, posinf=0.0, neginf=0.0)

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
            named = self.policy.model.transformer.named_parameters()
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

        transformer = self.policy.model.transformer
        weights = copy(adapter.weights(transformer))
        with self.policy.using(self.ema.average):
            averaged = copy(adapter.weights(transformer))
        average, old = ([a.to("cpu", copy=True) for a in values] for values in (self.ema.average, self.old))
        optimizer = copy(optimizer_tensors(self.optimizer))
        scaler, measured = self.scaler.state_dict(), self.measured.table.clone()
        return Captured(weights, averaged, average, old, optimizer, scaler, self.ema.steps, measured)

    def restore(self, captured: Captured) -> None:
        """Become what was captured, but for the rate; `averaged` follows from `average`. Gradients are forgotten."""
        self.optimizer.zero_grad(set_to_none=True)
        self.apart.clear()
        adapter.set_weights(self.policy.model.transformer, captured.weights)
        for average, kept in zip(self.ema.average, captured.average, strict=True):
            average.copy_(kept)
        for old, kept in zip(self.old, captured.old, strict=True):
            old.copy_(kept)
        self.ema.steps = captured.optimizer_steps
        self.measured.table.copy_(captured.measured)
        set_optimizer_tensors(self.optimizer, captured.optimizer)
        self.scaler = self._new_scaler()  # one that was left in the middle of a step takes no other
        self.scaler.load_state_dict(captured.scaler)
