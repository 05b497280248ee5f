"""`star fetch`: what a configuration needs from the network, brought into this machine's caches; jobs then run without one.

Hub repositories come at their pinned commits, and of their files only what is loaded: configurations, tokenizers, safetensors
weights. HF_HOME moves the hub's cache. Without a network, or with HF_HUB_OFFLINE=1, the caches are only checked.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from star import hub
from star.config import Config
from star.errors import InputError

_TEXTS = ("*.json", "*.txt", "*.model")
_MODEL = (*_TEXTS, "model.safetensors", "model-*.safetensors")
_INSTEAD = {"ocr": "set prompts.ocr: generated", "pickscore": "take pickscore out of `tasks`"}


class Repository(NamedTuple):
    """A hub repository that `key` of the configuration names; `files` are patterns, none for a diffusers pipeline."""

    key: str
    name: str
    revision: str | None
    files: tuple[str, ...] | None


def repositories(config: Config) -> list[Repository]:
    """The hub repositories that the stages of `config` load; local folders need none.

    Whatever the tasks are: the collapse guards score a task's pictures with the scorers of the others too.
    """
    policy, s = config.policy, config.scorers
    named = [
        Repository("policy.model", policy.model, policy.revision, None),
        Repository("scorers.pickscore_model", s.pickscore_model, s.pickscore_revision, _MODEL),
        Repository("scorers.pickscore_processor", s.pickscore_processor, s.pickscore_processor_revision, _TEXTS),
    ]
    if s.detector == "mask2former":
        named.append(Repository("scorers.detector_model", s.detector_model, s.detector_revision, _MODEL))
    if s.detector != "miniature":
        named.append(Repository("scorers.color_model", s.color_model, s.color_revision, _MODEL))
    return [repository for repository in named if hub.is_repository(repository.name)]


def _published(config: Config) -> list[tuple[str, str]]:
    """(task, file) of the prompts that the tasks take from their publication."""
    if config.prompts.world != "coco":
        return []
    tasks = [t for t in config.tasks if t == "pickscore" or (t == "ocr" and config.prompts.ocr == "published")]
    splits = {task: [s for s in ("train", "test") if s not in config.prompts.files.get(task, {})] for task in tasks}
    return [(task, f"dataset/{task}/{split}.txt") for task in tasks for split in splits[task]]


def _easyocr(config: Config) -> bool:
    """Whether EasyOCR reads pictures, with weights that it downloads itself; prompts of geneval quote nothing to be read."""
    scorers = config.scorers
    return scorers.ocr_engine == "easyocr" and scorers.ocr_weights is None and set(config.tasks) != {"geneval"}


def needs(config: Config) -> list[str]:
    """What `fetch` brings, a line each; nothing for a configuration that lies whole on this disk."""
    lines = [f"{r.name}@{r.revision}" for r in repositories(config)]
    lines += [file for _, file in _published(config) if config.prompts.mirror is None]
    return lines + ["easyocr"] * _easyocr(config)


def fetch(config: Config) -> Iterator[str]:
    """Bring everything that `config` needs; yields a line for each thing that is there now.

    Raises InputError, with the remedy, when a repository is unpinned, gated, missing, without safetensors or out of reach;
    for an unpinned one before anything is fetched.
    """
    for key, name, revision, _ in repositories(config):
        hub.check_pin(name, revision, key)
    for task, file in _published(config):
        from star.prompts import published

        published.content(file, config.prompts.mirror, _INSTEAD[task])
        yield f"prompts: {Path(config.prompts.mirror or published.CACHE, file)}"
    for repository in repositories(config):
        print(f"{repository.key}: fetching {repository.name}", file=sys.stderr, flush=True)
        folder = _snapshot(repository)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
        yield f"{repository.key}: {repository.name}@{folder.name}, {size:.2f} GB in {folder}"
    if _easyocr(config):
        from star.scoring import engines

        scorers = config.scorers
        yield f"scorers.ocr_engine: {engines.easyocr(scorers.ocr_mode, scorers.ocr_size, 'cpu', None).fingerprint}"


def _snapshot(repository: Repository) -> Path:
    """The folder of a repository's files in the hub's cache, complete. Raises InputError as `fetch`."""
    key, name, revision, files = repository
    answer = hub.ask(name, revision, "model_index.json" if files is None else "config.json")
    answered = answer is None or isinstance(answer, HfHubHTTPError)
    try:
        folder = _download(repository, local_files_only=not answered)
    except (OSError, ValueError) as error:
        why = f"cannot be fetched: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{key}: {name} {hub.refusal(name, revision, answer) or why}") from None
    if files == _MODEL and not any(folder.glob("*.safetensors")):
        raise InputError(f"{key}: {name} has no safetensors weights at {revision}; name a commit that has")
    return folder


def _download(repository: Repository, local_files_only: bool) -> Path:
    _, name, revision, files = repository
    if files is not None:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=local_files_only))
    from diffusers import StableDiffusion3Pipeline

    return Path(
        StableDiffusion3Pipeline.download(name, revision=revision, use_safetensors=True, local_files_only=local_files_only)
    )
