"""Loading a base pipeline from a folder or a hub repository, whole or not at all, and naming its weights."""

import hashlib
import json
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline

from star.config import Policy
from star.errors import InputError
from star.hub import check as hub
from star.hub import lock, weights
from star.models.adapter import ADAPTER_FILE
from star.models.sources import base
from star.runtime import pick_precision


def pipeline_class(settings: Policy) -> str:
    """The class name in the base's model_index.json. Raises InputError as `load_pipeline`."""
    if not Path(settings.model).is_dir() and not hub.is_repository(settings.model):
        remedy = "the miniature is made by `snakemake pretrain_miniature`"
        raise InputError(f"policy.model: no folder {settings.model}; {remedy}")
    index = weights.folder(base(settings), "model_index.json") / "model_index.json"
    if not index.is_file():
        raise InputError(f"policy.model: {settings.model} has no model_index.json; name a diffusers pipeline")
    return json.loads(index.read_text(encoding="utf-8"))["_class_name"]


def load_pipeline(settings: Policy) -> DiffusionPipeline:
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


def has_tokenizers(pipe: DiffusionPipeline) -> bool:
    """Whether every text encoder's tokenizer has its words; transformers makes an empty one where there is none."""
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None}
    tokenizers = {name: getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in encoders}
    return all(len(tokenizers[name]) > 0.9 * encoder.config.vocab_size for name, encoder in encoders.items())


def weights_digest(settings: Policy, adapter: Path | None = None) -> str:
    """12 hex digits that change with the weights: of a folder's files, or of a repository's name and commit."""
    digest = hashlib.sha256()
    folder = Path(settings.model)
    for file in sorted(folder.rglob("*.safetensors")) if folder.exists() else []:
        digest.update(file.read_bytes())
    pinned = settings.revision
    if hub.is_repository(settings.model):
        pinned = lock.commit(settings.model, settings.revision, "policy.revision")
    digest.update(f"{settings.model}@{pinned}".encode())
    if adapter is not None:
        digest.update((adapter / ADAPTER_FILE).read_bytes())
    return digest.hexdigest()[:12]


def origin(settings: Policy, adapter: Path | None = None) -> str:
    """The weights and, with precision `auto`, what that is here: what was begun in one is not continued in the other."""
    chosen = f"-{pick_precision(settings)}" if settings.precision == "auto" else ""
    return f"{weights_digest(settings, adapter)}{chosen}"
