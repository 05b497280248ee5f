"""Weights of every model that the configuration uses: a whole folder, a whole repository in the hub's cache, or what to do.

Files in the cache are compared with the lock.

Where a repository is not whole in the cache, the hub is asked whether it can be had: once each, a few seconds at most.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from star.config import Config
from star.doctor.machine import disk
from star.errors import InputError
from star.hub import check as hub
from star.hub import lock
from star.hub.check import Source
from star.hub.sources import packages, sources

Check = tuple[bool, str]
_ONE_OF = {  # a part of a model: files of which one set is enough
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",)),
    "images": (("preprocessor_config.json",), ("processor_config.json",)),
    "scheduler": (("scheduler_config.json",),),
}
_WEIGHTS = {"model": "model.safetensors", "diffusion": "diffusion_pytorch_model.safetensors"}  # transformers', diffusers'


def check(config: Config) -> Iterator[Check]:
    """One line a model; then, of repositories that are not whole in the cache, whether they can be had."""
    absent = []
    for source in sources(config):
        fine, line = _place(source)
        yield fine, line
        if not fine and hub.is_repository(source.name):
            absent.append(source)
    for package in packages(config):
        try:
            yield True, f"{package.key}: {package.check()}"
        except InputError as error:
            yield False, str(error)
    if absent:
        yield disk(Path(constants.HF_HUB_CACHE))
        yield from _hub(absent)


def lacks(folder: Path, part: str) -> list[str]:
    """The files that `from_pretrained` would miss in a folder for one part: pipeline, model, tokenizer, images, ..."""
    if part == "pipeline":
        if not (folder / "model_index.json").is_file():
            return ["model_index.json"]
        return [f"{name}/{file}" for name, kind in _components(folder) for file in lacks(folder / name, kind)]
    if part in _WEIGHTS:
        return _absent(folder, ("config.json", *_weight_files(folder, _WEIGHTS[part])))
    return _absent(folder, *_ONE_OF[part])


def _components(folder: Path) -> Iterator[tuple[str, str]]:
    """Folders of a pipeline and what they hold."""
    for name, library in lock.components(folder).items():
        kind = "diffusion" if library == "diffusers" else "model"
        yield name, "tokenizer" if name.startswith("tokenizer") else "scheduler" if name == "scheduler" else kind


def _weight_files(folder: Path, name: str) -> list[str]:
    index = folder / f"{name}.index.json"
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index.is_file() else [name]


def _absent(folder: Path, *sets: tuple[str, ...]) -> list[str]:
    """What the first set of files lacks; nothing where any set is whole."""
    absent = [[name for name in names if not (folder / name).is_file()] for names in sets]
    return absent[0] if all(absent) else []


def _place(source: Source) -> Check:
    """Where a model is, or what is missing, or what is not the file that is locked."""
    key, name, revision, parts = source
    if not hub.is_repository(name):
        folder, where, remedy = Path(name), name, "name a whole one (`snakemake pretrain_miniature` makes the miniature's)"
        if not folder.is_dir():
            return False, f"{key}: no folder {name}: {remedy}"
    else:
        try:
            commit = lock.commit(name, revision, source.revision_key)
            lock.check(source, commit)
        except InputError as error:
            return False, str(error)
        folder, where = lock.snapshot(name, commit), f"{name} at {commit[:12]}"
        remedy = "run `star fetch` with this configuration"
        if folder is None:
            return False, f"{key}: {where} is not in the hub cache {constants.HF_HUB_CACHE}: {remedy}"
        where += f" in the hub cache {folder}"
    if lacking := [file for part in parts for file in lacks(folder, part)]:
        return False, f"{key}: {where} lacks {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}: {remedy}"
    return True, f"{key}: {where}, {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.1f} MB"


def _hub(absent: list[Source]) -> Iterator[Check]:
    """Whether the hub gives what is absent; a hub that does not answer is not asked again."""
    for source in {source.name: source for source in absent}.values():
        revision = source.revision or lock.read().commits.get(source.name, constants.DEFAULT_REVISION)
        answer = hub.ask(source.name, revision, source.first_file)
        if not (answer is None or isinstance(answer, HfHubHTTPError)):
            yield (
                False,
                f"hub: {constants.ENDPOINT} does not answer ({_words(answer)}): connect this machine, or fill its cache",
            )
            if any("pipeline" in source.parts for source in absent):
                yield _token()
            return
        refused = hub.refusal(source.name, revision, answer)
        yield refused is None, f"hub: {source.name} {refused or 'can be downloaded'}"


def _token() -> Check:
    """Whether somebody is logged in, where the hub cannot say if that is needed."""
    if get_token() is not None:
        return True, "hub: a token is there; repositories with a licence gate need that its account accepted the licence"
    return False, "hub: no token: Stable Diffusion 3.5 has a licence gate, accept it on its page, then `hf auth login`"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
