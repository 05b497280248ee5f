"""What a training will do and need, in numbers derived from its settings. Source: ours."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from star.config import PolicySettings, RunSettings, published_epochs
from star.models.attention import kernels_of
from star.models.door import FlowModel
from star.models.memory import gathers, resident_bytes
from star.models.policy import Policy
from star.models.unloaded import give_device
from star.objectives.door import make_objective
from star.runtime import pick_precision
from star.training.checkpoint import bytes_kept
from star.training.epoch import measured_steps, trained_steps
from star.training.pictures import OF_PROMPT, TILE

_GIB = 2**30


def describe(settings: RunSettings, processes: int, branches: int) -> list[str]:
    """The batch numbers of an epoch, a line each; a velocity costs `branches` passes of the transformer."""
    rollout, training, objective = settings.rollout, settings.training, make_objective(settings)
    images, trained = rollout.groups * rollout.group_size, trained_steps(rollout, 0, 1)
    batches, rounds = images // rollout.batch, -(-images // (rollout.batch * training.updates_per_epoch * processes))
    points, cost = objective.points_a_sample(trained), passes(settings, branches)
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


def passes(settings: RunSettings, branches: int) -> Passes:
    """Count them from the settings."""
    objective = make_objective(settings)
    points = objective.points_a_sample(trained_steps(settings.rollout, 0, 1))
    return Passes(
        rollout=branches * settings.rollout.steps,
        update=branches * points * (1 + len(objective.asks)),
        backward=branches * points,
    )


def for_a_card(settings: PolicySettings) -> bool:
    """Whether the settings mean a GPU; one that they name need not be in this machine."""
    return settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())


def weightless(settings: PolicySettings) -> PolicySettings:
    """The settings for a base without weights: on no device, in the precision of the one that is meant."""
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if for_a_card(settings) else str(pick_precision(settings)).removeprefix("torch.")
    return settings.model_copy(update={"device": "meta", "precision": precision})


@contextmanager
def standing_in(model: FlowModel, settings: PolicySettings) -> Iterator[None]:
    """Inside, a base without weights can run: on tensors without data, with the kernels of the device that is meant."""
    with FakeTensorMode(allow_non_fake_inputs=True), kernels_of("cuda") if for_a_card(settings) else nullcontext():
        for module in (model.transformer, model.decoder()):
            give_device(module)
        model.device = torch.device("cpu")
        yield


def describe_device(policy: Policy) -> str:
    """Where the transformer runs, and in which precision."""
    return f"device   {policy.device.type}, {str(policy.model.dtype).removeprefix('torch.')}"


class Memory(NamedTuple):
    """An estimate of what a process needs on its device: bytes by part, and the most at a time in each phase."""

    parts: dict[str, float]
    phases: dict[str, float]

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.phases.__getitem__)


def describe_memory(policy: Policy, settings: RunSettings, processes: int) -> list[str]:
    """The estimate of `memory_of`, GiB, in lines."""
    memory, batch = memory_of(policy, settings, processes), settings.rollout.batch
    gib = {part: f"{size / _GIB:.2f}" for part, size in (memory.parts | memory.phases).items()}
    old = f", old policy {gib['old policy']}" if memory.parts["old policy"] else ""
    away = ""
    if gathers(settings.compute, processes):
        where = "in the CPU's memory" if settings.compute.offload == "blocks" else f"shared out over {processes} processes"
        away = f" at a time, of {gib['whole transformer']} {where}"
    return [
        f"memory   GiB a process: transformer {gib['transformer']}{away}; autoencoder {gib['autoencoder']}",
        f"memory   adapter {gib['adapter']}, its gradient {gib['gradient']}, AdamW {gib['optimizer']}, "
        f"average {gib['average']}{old}, an optimizer step's start and change {gib['change']}",
        f"memory   activations of a micro-batch of {batch} {gib['activations']}, its forward pass {gib['forward']}, "
        f"decoding its pictures {gib['decode']}; text encoders {gib['text encoders']} while prompts are encoded",
        "memory   with the weights: " + ", ".join(f"{phase} {gib[phase]}" for phase in memory.phases),
        f"memory   estimated peak of a process {memory.phases[memory.peak] / _GIB:.1f} GiB ({memory.peak})",
    ]


def describe_disk(policy: Policy, settings: RunSettings) -> list[str]:
    """What a whole training leaves on the disk, from `disk_bytes`, in a line."""
    gib = {part: size / _GIB for part, size in disk_bytes(policy, settings).items()}
    published = len(published_epochs(settings))
    return [
        f"disk     states {gib['states']:.3f} GiB ({settings.checkpoints.keep_states} kept, and one while it is written), "
        f"adapters {gib['adapters']:.3f} ({published} epochs), pictures at most {gib['pictures']:.3f}; "
        f"in all {gib['all']:.3f}, however long it trains but for adapters and pictures"
    ]


def disk_bytes(policy: Policy, settings: RunSettings) -> dict[str, int]:
    """Bytes that a training leaves at its end, by part and in `all`. Test pictures are not its own, nor a few kB an epoch.

    Pictures are counted uncompressed.
    """
    kept = bytes_kept(settings, _bytes(policy.model.transformer, trained=True), "old" in make_objective(settings).asks)
    published, tracking = published_epochs(settings), settings.tracking
    drawn = {0, *published, *range(tracking.every, settings.training.epochs + 1, tracking.every)} if tracking.prompts else ()
    height, width = (min(TILE, side) for side in settings.policy.size)
    parts = kept | {"pictures": len(drawn) * tracking.prompts * OF_PROMPT * height * width * 3}
    return parts | {"all": sum(parts.values())}


def memory_of(policy: Policy, settings: RunSettings, processes: int) -> Memory:
    """The estimate for one process.

    Weights, adapter and optimizer are counted. Activations are what autograd keeps of the training's own forward pass, run
    without data; forward pass and decoding are what is alive at a time in them. Kernels' workspaces, what a backward pass needs
    beside the activations, and fragmentation are not in it: leave a tenth and 2 GiB.
    """
    model, compute, batch = policy.model, settings.compute, settings.rollout.batch
    adapter, objective = _bytes(model.transformer, trained=True), make_objective(settings)
    x_shape = (batch, *model.geometry.latents)
    parts = {
        "whole transformer": _bytes(model.transformer, trained=False),
        "transformer": resident_bytes(model, compute, processes),
        "autoencoder": _bytes(model.decoder()),
        "adapter": adapter,
        "gradient": adapter * (1 + measured_steps(settings, objective)),
        "optimizer": 2 * adapter,
        "average": adapter,
        "old policy": adapter if "old" in objective.asks else 0,
        "change": 2 * adapter,
        "activations": activation_bytes(model, batch, compute.gradient_checkpointing),
        "forward": most_alive(model, lambda: model.velocity(torch.zeros(x_shape), 0.5, model.example_text(batch))),
        "decode": most_alive(model, lambda: model.pixels(torch.zeros(x_shape))),
        "text encoders": sum(_bytes(encoder) for encoder in model.text_encoders()),
    }
    kept = sum(parts[part] for part in ("transformer", "autoencoder", "adapter", "optimizer", "average", "old policy"))
    phases = {
        "prompts": kept + parts["text encoders"],
        "rollout": kept + parts["forward"],
        "pictures": kept + parts["decode"],
        "update": kept + parts["gradient"] + parts["activations"],
        "step": kept + parts["gradient"] + parts["change"],
    }
    return Memory(parts, phases)


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


@contextmanager
def _without_data(model: FlowModel, *modules: nn.Module) -> Iterator[set[int]]:
    """Inside, the modules run on tensors without data; yields the storages of their weights."""
    running = detect_fake_mode()
    eager = torch.compiler.set_stance("force_eager")  # compiled code reads what is not there
    with eager, running or FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device(model.device):
        held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        alive = [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in held]
        yield {t.untyped_storage()._cdata for t in alive}


def saved_for_backward(model: FlowModel, batch: int) -> int:
    """Bytes that autograd saves in the model's velocity, beside the weights, found with tensors that have no data."""
    alive: list[torch.Tensor] = []  # an address must not come back
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with _without_data(model, model.transformer) as weights, hooks:
        model.velocity(torch.zeros(batch, *model.geometry.latents), 0.5, model.example_text(batch))
    return sum(size for storage, size in saved.items() if storage not in weights)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, while they are alive; storages of `weights` are not theirs."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.now, self.most, self._weights = 0, 0, weights
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._weights and storage not in self._seen:
                self._seen.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now)


def most_alive(model: FlowModel, run: Callable[[], object]) -> int:
    """The most bytes that are alive at a time while `run` uses the model without gradients, beside its weights."""
    with torch.no_grad(), _without_data(model, model.transformer, model.decoder()) as weights, _Alive(weights) as alive:
        run()
    return alive.most
