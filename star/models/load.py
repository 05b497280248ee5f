"""Loading a base pipeline from a folder or a hub repository, whole or not at all, and naming its weights."""

import inspect
import json
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from transformers import AutoTokenizer

from star.config import PolicySettings
from star.errors import InputError
from star.hub import check as hub
from star.hub import weights
from star.models.sources import base
from star.runtime import pick_precision


def pipeline_class(settings: PolicySettings) -> str:
    """The class name in the base's model_index.json. Raises InputError as `load_pipeline`."""
    if not Path(settings.model).is_dir() and not hub.is_repository(settings.model):
        remedy = "the miniature is made by `snakemake pretrain_miniature`"
        raise InputError(f"policy.model: no folder {settings.model}; {remedy}")
    index = weights.folder(base(settings), "model_index.json") / "model_index.json"
    if not index.is_file():
        raise InputError(f"policy.model: {settings.model} has no model_index.json; name a diffusers pipeline")
    return json.loads(index.read_text(encoding="utf-8"))["_class_name"]


def block_count(settings: PolicySettings) -> int:
    """How many transformer blocks the base has, without loading it. Raises InputError as `load_pipeline`."""
    pipeline_class(settings)
    file = weights.folder(base(settings), "transformer/config.json") / "transformer/config.json"
    return json.loads(file.read_text(encoding="utf-8"))["num_layers"]


def load_pipeline(settings: PolicySettings) -> DiffusionPipeline:
    """The base pipeline. Raises InputError, with the remedy, when folder, repository, licence or revision is missing."""
    name = pipeline_class(settings)
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise InputError(f"policy.model: {settings.model} is a {name}, which diffusers {diffusers.__version__} does not know")
    options = {"dtype": pick_precision(settings), "use_safetensors": True}
    pipe = weights.load(cls, base(settings), has_tokenizers, **options)
    if not has_tokenizers(pipe):
        raise InputError(f"policy.model: {settings.model} lacks a tokenizer; name a whole diffusers pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_tokenizers(settings: PolicySettings) -> DiffusionPipeline:
    """A pipeline of the base's class with its tokenizers alone. Raises InputError when one of them cannot be read."""
    cls, root = getattr(diffusers, pipeline_class(settings)), weights.folder(base(settings), "tokenizer")
    parts: dict[str, object] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if not name.startswith("tokenizer"):
            parts[name] = None if parameter.default is parameter.empty else parameter.default
            continue
        try:
            parts[name] = AutoTokenizer.from_pretrained(root / name)
        except (OSError, ValueError) as error:
            raise InputError(f"policy.model: no {name} of {settings.model}: {' '.join(str(error).split())[:200]}") from None
    return cls(**parts)


def has_tokenizers(pipe: DiffusionPipeline) -> bool:
    """Whether every text encoder's tokenizer has its words; transformers makes an empty one where there is none."""
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None}
    tokenizers = {name: getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in encoders}
    return all(len(tokenizers[name]) > 0.9 * encoder.config.get_text_config().vocab_size for name, encoder in encoders.items())
