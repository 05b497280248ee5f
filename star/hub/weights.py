"""Loading a model's weights, whole or not at all, and naming them by their hash."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError

from star.errors import InputError
from star.hub import check as hub
from star.hub import lock
from star.hub.check import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Libraries patch torch's modules while they load; two threads at once would leave them patched.
_ONE_AT_A_TIME = threading.Lock()
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(setting: str) -> str:
    """The torch device of the setting scorers.device; of several GPUs that of this training process, whose worker this may be.

    Raises InputError for `cuda` where there is none.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise InputError("scorers.device: cuda, but torch sees no GPU here; use auto or cpu")
    device = setting if setting != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return device


def load(cls: type, source: Source, whole: Callable[[Any], bool] = lambda loaded: True, **settings: object) -> Any:
    """`cls.from_pretrained` of a folder or a hub repository, at the pinned or locked commit.

    What the hub's cache holds is loaded without a network; it is passed over when it cannot be loaded, or is not `whole` in
    the caller's eyes. Raises InputError, naming the key, when the source is missing, broken, neither pinned nor locked, not
    what the lock holds, refused or out of reach.
    """
    if not Path(source.name).is_dir() and not hub.is_repository(source.name):
        raise InputError(f"{source.key}: no folder {source.name!r}; give one that holds a {cls.__name__}, or a hub repository")
    try:
        with _ONE_AT_A_TIME:
            if not hub.is_repository(source.name):
                return cls.from_pretrained(source.name, **settings)
            return _load_repository(cls, source, whole, settings)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(
            f"{source.key}: cannot load {source.name!r} as {cls.__name__} ({why}); give another folder or hub repository"
        ) from None


def _load_repository(cls: type, source: Source, whole: Callable[[Any], bool], settings: dict) -> Any:
    commit = lock.commit(source.name, source.revision, source.revision_key)
    lock.check(source, commit)
    try:
        loaded = cls.from_pretrained(source.name, revision=commit, local_files_only=True, **settings)
        if whole(loaded):
            return loaded
    except OSError:  # a file is missing
        pass
    _check_available(source, commit)
    loaded = cls.from_pretrained(source.name, revision=commit, **settings)
    lock.check(source, commit)
    return loaded


def folder(source: Source, under: str) -> Path:
    """The folder of a source; of a repository its snapshot in the hub's cache, with the files whose paths begin with `under`.

    They come from the cache or else from the hub. Raises InputError as `load`.
    """
    if not hub.is_repository(source.name):
        return Path(source.name)
    commit = lock.commit(source.name, source.revision, source.revision_key)
    snapshot, wanted = lock.snapshot(source.name, commit), f"{under}*"
    if snapshot is None or not any(snapshot.glob(wanted)):
        _check_available(source, commit)
        snapshot = Path(snapshot_download(source.name, revision=commit, allow_patterns=wanted))
    lock.check(source, commit, under)
    return snapshot


def _check_available(source: Source, commit: str) -> None:
    """Raise InputError, with the remedy, when the hub does not give a repository."""
    if refused := hub.refusal(source.name, commit, hub.ask(source.name, commit, source.first_file)):
        raise InputError(f"{source.key}: {source.name} {refused}")
    print(f"fetching {source.name} for {source.key} into {constants.HF_HUB_CACHE}", file=sys.stderr)


def load_tokenizer(cls: type, source: Source, model: "PreTrainedModel") -> Any:
    """The tokenizer of a model of pictures and texts. Raises InputError as `load`, and when it is not the model's own.

    transformers makes an empty one where there is none.
    """
    rows = model.config.text_config.vocab_size
    tokenizer = load(cls, source, whole=lambda loaded: len(loaded) == rows)
    if len(tokenizer) != rows:
        raise InputError(
            f"{source.key}: {source.name!r} has a tokenizer of {len(tokenizer)} tokens, the model knows {rows}; "
            "give the folder or hub repository with the model's own tokenizer"
        )
    return tokenizer


def load_model(cls: type, source: Source) -> Any:
    """The model in float32 and eval mode. Raises InputError as `load`, and when some of its weights are not there.

    transformers would fill those at random, with a warning that nobody reads.
    """
    model, info = load(cls, source, output_loading_info=True, use_safetensors=True)
    missing = sorted(set(info["missing_keys"]) & dict(model.named_parameters()).keys())
    if missing:
        raise InputError(
            f"{source.key}: {source.name!r} lacks {len(missing)} weights of a {cls.__name__}, among them {missing[0]}; "
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
