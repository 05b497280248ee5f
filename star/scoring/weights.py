"""Loading a model's weights, whole or not at all, and naming them by their hash."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from star.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(setting: str) -> str:
    """The torch device of the setting scorers.device; of several GPUs that of this training process, whose worker this may be.

    Raises InputError for `cuda` where there is none.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if setting == "cuda" and not torch.cuda.is_available():
        raise InputError("scorers.device: cuda, but torch sees no GPU here; use auto or cpu")
    return setting if setting != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def load(cls: type, source: str, revision: str | None, key: str, **settings: object) -> Any:
    """`cls.from_pretrained` of a folder or hub repository. Raises InputError, naming the key, when it is missing or broken."""
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise InputError(f"scorers.{key}: no folder {source!r}; give one that holds a {cls.__name__}, or a hub repository")
    try:
        return cls.from_pretrained(source, revision=revision, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(
            f"scorers.{key}: cannot load {source!r} as {cls.__name__}; give a folder that holds it, or a hub repository "
            f"and a network or cache that has it: `hf download {source}` ({why})"
        ) from None


def load_model(cls: type, source: str, revision: str | None, key: str) -> Any:
    """The model in float32 and eval mode. Raises InputError as `load`, and when some of its weights are not there.

    transformers would fill those at random, with a warning that nobody reads.
    """
    model, info = load(cls, source, revision, key, output_loading_info=True, use_safetensors=True)
    missing = sorted(set(info["missing_keys"]) & dict(model.named_parameters()).keys())
    if missing:
        raise InputError(
            f"scorers.{key}: {source!r} lacks {len(missing)} weights of a {cls.__name__}, among them {missing[0]}; "
            f"it is another model or an incomplete download"
        )
    return model.float().eval()


def digest(model: torch.nn.Module) -> str:
    """The first 12 hex digits of the SHA-256 of a model's weights by name, whatever files and revision they came from."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:12]
