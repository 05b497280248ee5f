"""A base without its weights, for the plan: the true classes made from their configurations alone.

Of a folder they are the folder's. Of a repository they are those in `configurations/`, each with its source and what could not
be verified there, or else what the hub's cache has. Nothing but the plan reads `configurations/`.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from star.config import PolicySettings
from star.hub import weights
from star.models.load import load_tokenizers, pipeline_class
from star.models.sources import base
from star.runtime import pick_precision

_KEPT = Path(__file__).parent / "configurations"
_FILES = ("config.json", "scheduler_config.json")


class Configurations(NamedTuple):
    """The class of a pipeline and of its components, each with its configuration, and where they are from.

    `fetched` says that the base itself has them, with its tokenizers beside.
    """

    pipeline: str
    components: dict[str, tuple[str, str, dict[str, Any]]]
    source: str
    fetched: bool


def configurations_of(settings: PolicySettings) -> Configurations:
    """The configurations of the base. Raises InputError, with the remedy, for one that is neither known here nor fetched."""
    if Path(settings.model).is_dir():
        return _in_folder(Path(settings.model), pipeline_class(settings))
    for file in sorted(_KEPT.glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["repository"] == settings.model:
            return Configurations(kept["pipeline"], kept["components"], f"star/models/configurations/{file.name}", False)
    return _in_folder(weights.folder(base(settings), "model_index.json"), pipeline_class(settings))


def _in_folder(folder: Path, name: str) -> Configurations:
    """Those of a pipeline's folder."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = {
        part: (*entry, json.loads(file.read_text(encoding="utf-8")))
        for part, entry in index.items()
        if isinstance(entry, list)
        for file in (folder / part / kind for kind in _FILES)
        if file.is_file()
    }
    return Configurations(name, found, str(folder), True)


def pipeline(settings: PolicySettings) -> DiffusionPipeline:
    """The pipeline of the base in its precision, on the device `meta`, where it takes no memory.

    Raises InputError as `configurations_of`.
    """
    found, dtype = configurations_of(settings), pick_precision(settings)
    parts = {name: _component(*described, dtype=dtype) for name, described in found.components.items()}
    if found.fetched:
        whole = load_tokenizers(settings).components
        parts |= {name: part for name, part in whole.items() if name.startswith("tokenizer")}
    cls = getattr(diffusers, found.pipeline)
    wanted = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    takes_none = {name: None for name in wanted if name.startswith(("tokenizer", "text_encoder", "image_encoder"))}
    takes_none |= {name: None for name in wanted if name == "feature_extractor"}
    return cls(**takes_none | {name: part for name, part in parts.items() if name in wanted})


def _component(library: str, class_name: str, described: dict[str, Any], *, dtype: torch.dtype) -> Any:
    """A component from its configuration."""
    cls = getattr(importlib.import_module(library), class_name)
    if not issubclass(cls, nn.Module):
        return cls.from_config(described)
    with torch.device("meta"):
        made = cls.from_config(described) if library == "diffusers" else cls(cls.config_class.from_dict(described))
        return nn.Module.to(made, dtype)  # diffusers' own warns of nothing


def give_device(module: nn.Module) -> None:
    """Let a module on the device `meta` stand on the CPU; inside a `FakeTensorMode`, so its tensors still have no data.

    On `meta` there is no autocast, so what it saves for a backward pass would be another model's.
    """
    for part in module.modules():
        tensors = dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
        tensors |= {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
        for name, tensor in tensors.items():
            here = torch.empty_like(tensor, device="cpu")
            setattr(part, name, nn.Parameter(here, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else here)
