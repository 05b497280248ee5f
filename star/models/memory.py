"""Where the weights of a large base lie: whole on the device, shared out over the processes, or on the CPU between passes.

The base is frozen and the adapter stays whole on the device, so a block's weights are only ever read. FSDP gathers them before
the block's forward and backward pass and frees them after it. Source: torch's `fully_shard` and its `CPUOffloadPolicy`.
"""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from star.config import Compute
from star.models.adapter import lora_parameters
from star.models.door import FlowModel

_GATHERED = 3  # blocks at a time: the one that runs, the next, and the buffer that it arrives in


def gathers(compute: Compute, processes: int) -> bool:
    """Whether a pass gathers its weights block by block, in all of the processes together."""
    return compute.offload == "blocks" or (compute.shard and processes > 1)


def spread(model: FlowModel, compute: Compute, processes: int) -> None:
    """Put the base where `compute` wants it; to be called once, with the adapter on. Nothing where it stays whole.

    With `offload` every process keeps its share of the weights in the CPU's memory, pinned for a GPU.
    """
    if not gathers(compute, processes):
        return
    if not distributed.is_initialized():  # one process alone needs no launcher
        backend = "cpu:gloo,cuda:nccl" if model.device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(model.device.type, (processes,))
    policy = CPUOffloadPolicy(pin_memory=model.device.type == "cuda") if compute.offload == "blocks" else OffloadPolicy()
    whole = set(lora_parameters(model.transformer))
    for module in (*model.blocks, model.transformer):
        # Also the outermost: one process reads the adapter between passes, and all must then gather the same again.
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True, offload_policy=policy)


def starts_on(device: torch.device, compute: Compute) -> torch.device:
    """Where the transformer's weights lie until `spread`: a base that does not fit on the device never lies there whole."""
    stays_away = device.type == "cuda" and (compute.shard or compute.offload == "blocks")
    return torch.device("cpu") if stays_away else device


def frozen_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that are not trained."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if not p.requires_grad)


def resident_bytes(model: FlowModel, compute: Compute, processes: int) -> float:
    """Most bytes of the transformer's frozen weights on a process's device at a time. Source: ours."""
    whole = frozen_bytes(model.transformer)
    if not gathers(compute, processes):
        return whole
    blocks = [frozen_bytes(block) for block in model.blocks]
    kept = 0 if compute.offload == "blocks" else whole / processes
    return kept + whole - sum(blocks) + _GATHERED * max(blocks)
