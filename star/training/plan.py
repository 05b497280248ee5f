"""What a training will do and need, in numbers derived from its settings. Source: ours."""

from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from star.config import RunSettings
from star.models.door import FlowModel
from star.models.policy import Policy
from star.objectives.door import make_objective
from star.training.epoch import measured_steps, trained_steps

_GIB = 2**30
_ADAPTER_COPIES = 7  # float32: weights, gradient, two moments of AdamW, average; a step's start and change


def describe(settings: RunSettings, processes: int) -> list[str]:
    """The batch numbers of an epoch, a line each."""
    rollout, training, objective = settings.rollout, settings.training, make_objective(settings)
    images, trained = rollout.groups * rollout.group_size, trained_steps(rollout, 0, 1)
    batches, rounds = images // rollout.batch, -(-images // (rollout.batch * training.updates_per_epoch * processes))
    points, cost = objective.points_a_sample(trained), passes(settings)
    learned = f"{points} of them trained" if objective.noisy else f"{points} noise levels of a picture trained"
    dropped = "; groups of equal rewards are dropped" if objective.drops_zero_advantage else ""
    prompts = f"{rollout.groups} prompts x {rollout.group_size}"
    if rollout.spare_groups:
        prompts += f", and where rewards of a group are equal {rollout.spare_groups} x {rollout.group_size} more"
    return [
        f"epoch    {images} images: {prompts}; {rollout.steps} denoising steps, {learned}",
        f"rollout  {batches} batches of {rollout.batch}, {batches // processes} for each of {processes} process(es)",
        f"update   {training.updates_per_epoch} optimizer step(s) an epoch; for each at most {rounds} micro-batch(es) of "
        f"{rollout.batch} a process, so {rounds * points} backward passes add up{dropped}",
        f"passes   an image: {cost.rollout} forward in its rollout, {cost.update} forward and {cost.backward} backward in its "
        "update",
    ]


class Passes(NamedTuple):
    """Passes of the transformer that one image costs, guidance counted; a group's shared steps are counted for each image."""

    rollout: int
    update: int
    backward: int


def passes(settings: RunSettings) -> Passes:
    """Count them from the settings."""
    objective, branches = make_objective(settings), 2 if settings.policy.guidance > 1 else 1
    points = objective.points_a_sample(trained_steps(settings.rollout, 0, 1))
    return Passes(
        rollout=branches * settings.rollout.steps,
        update=branches * points * (1 + len(objective.asks)),
        backward=branches * points,
    )


def describe_device(policy: Policy) -> str:
    """Where the transformer runs, and in which precision."""
    return f"device   {policy.device.type}, {str(policy.model.dtype).removeprefix('torch.')}"


def describe_memory(policy: Policy, settings: RunSettings, processes: int) -> list[str]:
    """The estimate of `memory_bytes`, GiB, in lines."""
    gib = {part: size / _GIB for part, size in memory_bytes(policy, settings, processes).items()}
    return [
        f"memory   weights {gib['weights']:.2f} GiB, adapter with optimizer {gib['adapter']:.2f}, activations of a micro-"
        f"batch of {settings.rollout.batch} {gib['activations']:.2f}; "
        f"text encoders {gib['text encoders']:.2f} while prompts are encoded",
        f"memory   estimated peak of a process {gib['peak']:.1f} GiB",
    ]


def memory_bytes(policy: Policy, settings: RunSettings, processes: int) -> dict[str, float]:
    """An estimate of what a process needs on its device, bytes by part and at the `peak`.

    Weights and optimizer are counted, activations taken from the training's own forward pass, run without data. What the
    autoencoder needs while it decodes, kernels' workspaces and fragmentation are not in it: leave a tenth and 2 GiB.
    """
    model, compute = policy.model, settings.compute
    shared = processes if compute.shard else 1
    parts = {
        "weights": _bytes(model.transformer, trained=False) / shared + _bytes(model.decoder()),
        "adapter": (_ADAPTER_COPIES + measured_steps(settings, make_objective(settings)))
        * _bytes(model.transformer, trained=True),
        "activations": activation_bytes(model, settings.rollout.batch, compute.gradient_checkpointing),
        "text encoders": sum(_bytes(encoder) for encoder in model.text_encoders()),
    }
    return parts | {"peak": parts["weights"] + parts["adapter"] + max(parts["activations"], parts["text encoders"])}


def _bytes(module: nn.Module, trained: bool | None = None) -> int:
    chosen = (p for p in module.parameters() if trained is None or p.requires_grad == trained)
    return sum(p.numel() * p.element_size() for p in chosen)


def activation_bytes(model: FlowModel, batch: int, checkpointing: bool) -> int:
    """Bytes kept between forward and backward pass of a micro-batch; with gradient checkpointing one block's own are added."""
    kept = saved_for_backward(model, batch)
    if checkpointing:
        model.transformer.disable_gradient_checkpointing()
        kept += saved_for_backward(model, batch) // len(model.blocks)
        model.transformer.enable_gradient_checkpointing()
    return kept


def saved_for_backward(model: FlowModel, batch: int) -> int:
    """Bytes that autograd saves in the model's velocity, beside the weights, found with tensors that have no data."""
    transformer = model.transformer
    alive: list[torch.Tensor] = []  # an address must not come back
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    eager = torch.compiler.set_stance("force_eager")  # compiled code reads what is not there
    with eager, FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device(model.device):
        alive += [mode.from_tensor(t) for t in (*transformer.parameters(), *transformer.buffers())]
        weights = {t.untyped_storage()._cdata for t in alive}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.velocity(torch.zeros(batch, *model.geometry.latents), 0.5, model.example_text(batch))
    return sum(size for storage, size in saved.items() if storage not in weights)
