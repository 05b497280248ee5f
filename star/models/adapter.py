"""The adapter: one LoRA on a frozen transformer, float32 whatever the base's precision, at the strength it was trained at.

Source: LoRA (arXiv 2106.09685) by peft; the strength in files is ours (docs/pitfalls.md).
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from star.config import Lora
from star.errors import InputError
from star.layout import ADAPTER_FILE

if TYPE_CHECKING:
    from star.models.door import FlowModel

_NAME = "default"


def add_adapter(
    transformer: nn.Module, lora: Lora, *, targets: list[str], seed: int, device: torch.device
) -> list[nn.Parameter]:
    """Add a fresh adapter (Gaussian A, zero B) on the device and return its parameters, in a fixed order.

    Raises InputError when one of `targets`, ends of module names, matches no module: it would be left out without a word.
    """
    names = [name for name, _ in transformer.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            ends = {".".join(name.split(".")[-depth:]) for name in names for depth in (1, 2, 3)}
            nearest = difflib.get_close_matches(target, sorted(ends), 1, 0.0)
            raise InputError(f"policy.lora.targets: `{target}` is no module of this model; the nearest is `{nearest[0]}`")
    torch.manual_seed(seed)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, init_lora_weights="gaussian", target_modules=targets)
    transformer.add_adapter(config)
    return keep_float32(transformer, device)


def lora_parameters(transformer: nn.Module) -> list[nn.Parameter]:
    """The adapter's parameters, in a fixed order."""
    return [p for name, p in transformer.named_parameters() if "lora_" in name]


def keep_float32(transformer: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Keep the adapter in float32 on the device, in training and testing alike; returns its parameters."""
    parameters = lora_parameters(transformer)
    for parameter in parameters:
        parameter.data = parameter.data.to(device, torch.float32)
    if any(p.dtype != torch.float32 for p in transformer.parameters()):  # autocast does the casting; peft's goes there and back
        for module in transformer.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False
    return parameters


def weights(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's weights under peft's names."""
    return get_peft_model_state_dict(transformer)


def set_weights(transformer: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put `weights` back. Raises InputError when they do not fit this model."""
    result = set_peft_model_state_dict(transformer, tensors)
    if result.unexpected_keys:
        raise InputError(f"adapter: weights {result.unexpected_keys[:2]} do not fit this model")


def metadata(transformer: nn.Module) -> dict:
    """The adapter's configuration as diffusers writes it into the file's header."""
    described = transformer.peft_config[_NAME].to_dict()
    return described | {"target_modules": sorted(described["target_modules"])}  # a set, whose order no two processes share


def at_full_strength(tensors: dict[str, torch.Tensor], described: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """The same adapter with alpha = rank, and the factor alpha / rank inside lora_B, weights under peft's names.

    Tools that drop the file's header take alpha = rank, and would otherwise load the adapter at another strength. The factor is
    exact where it is a power of two.
    """
    factor = described["lora_alpha"] / described["r"]
    folded = {name: factor * tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    return folded, described | {"lora_alpha": described["r"]}


def put_in(model: "FlowModel", folder: Path, lora: Lora) -> None:
    """Give the adapter that a model has, made from `lora`, the weights of a saved one, at the strength that its file names.

    Raises InputError when its rank is another, and when it does not fit this model.
    """
    tensors, described = model.read_lora(folder)
    described = described or {"r": lora.rank, "lora_alpha": lora.rank}
    if described["r"] != lora.rank:
        raise InputError(
            f"{folder}: its rank is {described['r']}, policy.lora.rank is {lora.rank}; take the rank of the adapter"
        )
    full, _ = at_full_strength(tensors, described)
    factor = lora.alpha / lora.rank
    set_weights(model.transformer, {name: tensor / factor if ".lora_B." in name else tensor for name, tensor in full.items()})


def adapter_file(folder: Path) -> Path:
    """The weights of a saved adapter. Raises InputError when the folder holds none."""
    file = folder / ADAPTER_FILE
    if not file.exists():
        raise InputError(f"{folder}: no {ADAPTER_FILE}; name the adapter/ folder of a checkpoint")
    return file


def use_adapter(model: "FlowModel", folder: Path | None) -> None:
    """Put the adapter that a model has, if any, aside for the one in `folder`, or for the base alone (None)."""
    if getattr(model.transformer, "peft_config", None):
        model.transformer.delete_adapters(_NAME)
    if folder is not None:
        load_adapter(model, folder)


def load_adapter(model: "FlowModel", folder: Path) -> None:
    """Load a saved adapter for sampling, at the strength that its file's header names (none: alpha = rank).

    It is not merged into the base: in bfloat16 the sum would round most of it away, and the policy would not be the trained one
    bit for bit. Raises InputError when the folder holds none, or one that does not fit this model.
    """
    file = adapter_file(folder)
    tensors, described = model.read_lora(folder)
    try:
        model.transformer.load_lora_adapter(dict(tensors), prefix=None, metadata=described, adapter_name=_NAME)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{file}: does not fit this model: {' '.join(str(error).split())[:200]}") from None
    keep_float32(model.transformer, model.device)
    set_weights(model.transformer, tensors)  # which loading rounded to the base's precision
