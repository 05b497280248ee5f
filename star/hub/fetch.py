"""`star fetch`: what a configuration needs from the network, brought into this machine's caches; jobs then run without one.

Hub repositories come at their pinned commits, and of their files only what is loaded: configurations, tokenizers, safetensors
weights. HF_HOME moves the hub's cache. Without a network, or with HF_HUB_OFFLINE=1, the caches are only checked.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from star.config import Config
from star.errors import InputError
from star.hub import check as hub
from star.hub.sources import Model, models, published_prompts, reads_with_easyocr

_TEXTS = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_INSTEAD = {"ocr": "set prompts.ocr: generated", "pickscore": "take the tasks with these prompts out of `tasks`"}


def repositories(config: Config) -> list[Model]:
    """The hub repositories that the stages of `config` load; local folders need none."""
    return [model for model in models(config) if hub.is_repository(model.source)]


def _downloads_easyocr(config: Config) -> bool:
    return reads_with_easyocr(config) and config.scorers.ocr.weights is None


def needs(config: Config) -> list[str]:
    """What `fetch` brings, a line each; nothing for a configuration that lies whole on this disk."""
    lines = [f"{model.source}@{model.revision}" for model in repositories(config)]
    lines += [file for _, file in published_prompts(config) if config.prompts.mirror is None]
    return lines + ["easyocr"] * _downloads_easyocr(config)


def fetch(config: Config) -> Iterator[str]:
    """Bring everything that `config` needs; yields a line for each thing that is there now.

    Raises InputError, with the remedy, when a repository is unpinned, gated, missing, without safetensors or out of reach;
    for an unpinned one before anything is fetched.
    """
    for key, source, revision, _ in repositories(config):
        hub.check_pin(source, revision, key)
    for task, file in published_prompts(config):
        from star.worlds.coco import published

        published.content(file, config.prompts.mirror, _INSTEAD[task])
        yield f"prompts: {Path(config.prompts.mirror or published.CACHE, file)}"
    for model in repositories(config):
        print(f"{model.key}: fetching {model.source}", file=sys.stderr, flush=True)
        folder = _snapshot(model)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
        yield f"{model.key}: {model.source}@{folder.name}, {size:.2f} GB in {folder}"
    if _downloads_easyocr(config):
        from star.scoring import engines

        scorers = config.scorers
        yield f"scorers.ocr.engine: {engines.easyocr(scorers.ocr.mode, scorers.ocr.size, 'cpu', None).fingerprint}"


def _snapshot(model: Model) -> Path:
    """The folder of a repository's files in the hub's cache, complete. Raises InputError as `fetch`."""
    key, source, revision, parts = model
    answer = hub.ask(source, revision, "model_index.json" if "pipeline" in parts else "config.json")
    answered = answer is None or isinstance(answer, HfHubHTTPError)
    try:
        folder = _download(model, local_files_only=not answered)
    except (OSError, ValueError) as error:
        why = f"cannot be fetched: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{key}: {source} {hub.refusal(source, revision, answer) or why}") from None
    if "model" in parts and not any(folder.glob("*.safetensors")):
        raise InputError(f"{key}: {source} has no safetensors weights at {revision}; name a commit that has")
    return folder


def _download(model: Model, local_files_only: bool) -> Path:
    settings = {"revision": model.revision, "local_files_only": local_files_only}
    if "pipeline" in model.parts:
        from diffusers import StableDiffusion3Pipeline

        return Path(StableDiffusion3Pipeline.download(model.source, use_safetensors=True, **settings))
    files = (*_TEXTS, *_WEIGHTS) if "model" in model.parts else _TEXTS
    return Path(snapshot_download(model.source, allow_patterns=files, **settings))
