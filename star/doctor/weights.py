"""Weights of every model that the configuration uses: a whole folder, a whole repository in the hub's cache, or what to do.

Where a repository is not whole in the cache, the hub is asked whether it can be had: once each, a few seconds at most.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError

from star.config import Config, Scorers
from star.doctor.machine import disk
from star.errors import InputError
from star.hub import check as hub
from star.hub.sources import Model, models, reads_with_easyocr
from star.scoring.scorer import needed

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
    for model in models(config):
        fine, line = _place(model)
        yield fine, line
        if not fine and hub.is_repository(model.source):
            absent.append(model)
    if "ocr" in needed(config):
        yield from _easyocr(config.scorers) if reads_with_easyocr(config) else _rapidocr()
    if "geneval" in needed(config) and config.scorers.geneval.detector == "mmdet":
        yield _mmdet(config.scorers)
    if absent:
        yield disk(Path(constants.HF_HUB_CACHE))
        yield from _hub(absent)


def lacks(folder: Path, part: str) -> list[str]:
    """The files that `from_pretrained` would miss in a folder for one part: pipeline, model, tokenizer, images, ..."""
    if part == "pipeline":
        index = folder / "model_index.json"
        if not index.is_file():
            return [index.name]
        return [f"{name}/{file}" for name, kind in _components(index) for file in lacks(folder / name, kind)]
    if part in _WEIGHTS:
        return _absent(folder, ("config.json", *_weight_files(folder, _WEIGHTS[part])))
    return _absent(folder, *_ONE_OF[part])


def _components(index: Path) -> Iterator[tuple[str, str]]:
    """Folders of a pipeline and what they hold."""
    for name, named in json.loads(index.read_text()).items():
        if isinstance(named, list) and named[0] is not None:
            kind = "diffusion" if named[0] == "diffusers" else "model"
            yield name, "tokenizer" if name.startswith("tokenizer") else "scheduler" if name == "scheduler" else kind


def _weight_files(folder: Path, name: str) -> list[str]:
    index = folder / f"{name}.index.json"
    return sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [name]


def _absent(folder: Path, *sets: tuple[str, ...]) -> list[str]:
    """What the first set of files lacks; nothing where any set is whole."""
    absent = [[name for name in names if not (folder / name).is_file()] for names in sets]
    return absent[0] if all(absent) else []


def _place(model: Model) -> Check:
    """Where a model is, or what is missing."""
    key, source, revision, parts = model
    if not hub.is_repository(source):
        folder, where, remedy = Path(source), source, "name a whole one (`snakemake pretrain_miniature` makes the miniature's)"
        if not folder.is_dir():
            return False, f"{key}: no folder {source}: {remedy}"
    else:
        try:
            hub.check_pin(source, revision, key)
        except InputError as error:
            return False, str(error)
        folder, where = _snapshot(source, revision), f"{source} at {revision[:12]}"
        remedy = f"`hf download {source} --revision {revision}`"
        if folder is None:
            return False, f"{key}: {where} is not in the hub cache {constants.HF_HUB_CACHE}: {remedy}"
        where += f" in the hub cache {folder}"
    if lacking := [file for part in parts for file in lacks(folder, part)]:
        return False, f"{key}: {where} lacks {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}: {remedy}"
    return True, f"{key}: {where}, {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.1f} MB"


def _snapshot(repository: str, revision: str) -> Path | None:
    """The folder of the cache with what it has of a repository at a commit, whole or not; None where it has nothing."""
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except IncompleteSnapshotError as error:  # of all files of the repository, most of which nobody needs
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None


def _hub(absent: list[Model]) -> Iterator[Check]:
    """Whether the hub gives what is absent; a hub that does not answer is not asked again."""
    repositories = {model.source: model for model in absent}.values()
    for model in repositories:
        file = "model_index.json" if "pipeline" in model.parts else "config.json"
        answer = hub.ask(model.source, model.revision or constants.DEFAULT_REVISION, file)
        if not (answer is None or isinstance(answer, HfHubHTTPError)):
            yield (
                False,
                f"hub: {constants.ENDPOINT} does not answer ({_words(answer)}): connect this machine, or fill its cache",
            )
            if any("pipeline" in model.parts for model in absent):
                yield _token()
            return
        refused = hub.refusal(model.source, model.revision, answer)
        yield refused is None, f"hub: {model.source} {refused or 'can be downloaded'}"
    for source in dict.fromkeys(model.source for model in absent if not hub.is_commit(model.revision)):
        yield from _commit(source)


def _token() -> Check:
    """Whether somebody is logged in, where the hub cannot say if that is needed."""
    if get_token() is not None:
        return True, "hub: a token is there; repositories with a licence gate need that its account accepted the licence"
    return False, "hub: no token: Stable Diffusion 3.5 has a licence gate, accept it on its page, then `hf auth login`"


def _commit(repository: str) -> Iterator[Check]:
    """Today's commit of a repository that is not pinned, to be written into the configuration."""
    found: list[str] = []
    error = hub.attempt(lambda: found.append(HfApi().model_info(repository, timeout=hub.TIMEOUT).sha))
    if error is None:
        yield True, f"hub: today's commit of {repository} is {found[0]}"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _easyocr(scorers: Scorers) -> Iterator[Check]:
    if importlib.util.find_spec("easyocr") is None:
        return  # the packages have said so
    from star.scoring.engines import easyocr_models

    found = easyocr_models(scorers.ocr.weights)
    absent = ", ".join(str(file) for file, _ in found if not file.is_file())
    if not absent:
        yield True, f"scorers.ocr.engine: easyocr, weights in {found[0][0].parent}"
    elif scorers.ocr.weights is not None:
        yield False, f"scorers.ocr.weights: {absent} missing: name the folder that has EasyOCR's weights, or leave the key out"
    else:
        yield (
            False,
            f"scorers.ocr.engine: {absent} missing: run `star fetch` with a network, or name a folder: scorers.ocr.weights",
        )


def _rapidocr() -> Iterator[Check]:
    package = importlib.util.find_spec("rapidocr")
    if package is None:
        return
    folder = Path(package.origin).parent / "models"
    absent = [f"*_{kind}_*.onnx" for kind in ("det", "rec") if not list(folder.glob(f"*_{kind}_*.onnx"))]
    yield (
        not absent,
        f"scorers.ocr.engine: rapidocr, weights in {folder}"
        + (f" lack {', '.join(absent)}: `pip install --force-reinstall rapidocr`" if absent else ""),
    )


def _mmdet(scorers: Scorers) -> Check:
    from star.scoring.mmdetection import checkpoint_digest

    try:
        digest = checkpoint_digest(Path(scorers.geneval.model))
    except InputError as error:
        return False, str(error)
    return True, f"scorers.geneval.model: {scorers.geneval.model}, SHA-256 {digest[:12]}"
