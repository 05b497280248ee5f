"""What a training will do and need, in numbers derived from its settings. Source: ours."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from star.config import RunSettings
from star.models.attention import CoreColumns
from star.models.sd3 import Encoded, Generator
from star.training.rollout import trained_steps

_GIB = 2**30
_ADAPTER_COPIES = 7  # float32: weights, gradient, two moments of AdamW, average; a step's start and change


def describe(settings: RunSettings, processes: int) -> list[str]:
    """The batch numbers of an epoch, a line each."""
    rollout, training = settings.rollout, settings.training
    images, trained = rollout.groups * rollout.group_size, len(trained_steps(rollout, 0, 1))
    batches, rounds = images // rollout.batch, -(-images // (rollout.batch * training.updates_per_epoch * processes))
    return [
        f"epoch    {images} images: {rollout.groups} prompts x {rollout.group_size}; {rollout.steps} denoising steps, "
        f"{trained} of them trained",
        f"rollout  {batches} batches of {rollout.batch}, {batches // processes} for each of {processes} process(es)",
        f"update   {training.updates_per_epoch} optimizer step(s) an epoch; for each at most {rounds} micro-batch(es) of "
        f"{rollout.batch} a process, so {rounds * trained} backward passes add up; groups of equal rewards are dropped",
    ]


def describe_device(policy: Generator) -> str:
    """Where the transformer runs, and in which precision."""
    return f"device   {policy.device.type}, {str(policy.dtype).removeprefix('torch.')}"


def describe_memory(policy: Generator, batch: int, processes: int) -> list[str]:
    """The estimate of `memory_bytes`, GiB, in lines."""
    gib = {part: size / _GIB for part, size in memory_bytes(policy, batch, processes).items()}
    return [
        f"memory   weights {gib['weights']:.2f} GiB, adapter with optimizer {gib['adapter']:.2f}, activations of a micro-"
        f"batch of {batch} {gib['activations']:.2f}; text encoders {gib['text encoders']:.2f} while prompts are encoded",
        f"memory   estimated peak of a process {gib['peak']:.1f} GiB",
    ]


def memory_bytes(policy: Generator, batch: int, processes: int) -> dict[str, float]:
    """An estimate of what a process needs on its device, bytes by part and at the `peak`; `policy` has its adapter.

    Weights and optimizer are counted, activations taken from the training's own forward pass, run without data. What the
    autoencoder needs while it decodes, kernels' workspaces and fragmentation are not in it: leave a tenth and 2 GiB.
    """
    pipe, transformer = policy.pipe, policy.transformer
    shared = processes if policy.compute.shard else 1
    parts = {
        "weights": _bytes(transformer, trained=False) / shared + _bytes(pipe.vae),
        "adapter": _ADAPTER_COPIES * _bytes(transformer, trained=True),
        "activations": activation_bytes(policy, batch),
        "text encoders": sum(_bytes(e) for e in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3) if e is not None),
    }
    return parts | {"peak": parts["weights"] + parts["adapter"] + max(parts["activations"], parts["text encoders"])}


def _bytes(module: nn.Module, trained: bool | None = None) -> int:
    chosen = (p for p in module.parameters() if trained is None or p.requires_grad == trained)
    return sum(p.numel() * p.element_size() for p in chosen)


def activation_bytes(policy: Generator, batch: int) -> int:
    """Bytes kept between forward and backward pass of a micro-batch; with gradient checkpointing one block's own are added."""
    transformer = policy.transformer
    kept = saved_for_backward(policy, batch)
    if policy.compute.gradient_checkpointing:
        transformer.disable_gradient_checkpointing()
        kept += saved_for_backward(policy, batch) // len(transformer.transformer_blocks)
        transformer.enable_gradient_checkpointing()
    return kept


def saved_for_backward(policy: Generator, batch: int) -> int:
    """Bytes that autograd saves in `Generator.velocity`, beside the weights, found with tensors that have no data."""
    transformer, config = policy.transformer, policy.transformer.config
    columns = policy.pipe.tokenizer_max_length + policy.policy.max_sequence_length
    alive: list[torch.Tensor] = []  # an address must not come back
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    eager = torch.compiler.set_stance("force_eager")  # compiled code reads what is not there
    with eager, FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device(policy.device):
        alive += [mode.from_tensor(t) for t in (*transformer.parameters(), *transformer.buffers())]
        weights = {t.untyped_storage()._cdata for t in alive}
        core = CoreColumns(torch.zeros(batch, 1, dtype=torch.long), torch.zeros(batch, 1))
        text = torch.zeros(batch, columns, config.joint_attention_dim)
        prompt = Encoded(text, torch.zeros(batch, config.pooled_projection_dim), core)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.velocity(
                torch.zeros(batch, *policy.latent_shape()), 0.5, prompt, prompt[:1] if policy.policy.guidance > 1 else None
            )
    return sum(size for storage, size in saved.items() if storage not in weights)
