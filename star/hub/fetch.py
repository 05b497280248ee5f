"""`star fetch`: what a configuration needs from the network, brought into this machine's caches; jobs then run without one.

Hub repositories come at their pinned or locked commits (star/hub/lock.py), and of their files only what is loaded:
configurations, tokenizers, safetensors weights. HF_HOME moves the hub's cache. Without a network, or with HF_HUB_OFFLINE=1,
the caches are only checked.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from star.config import Config
from star.errors import InputError
from star.hub import check as hub
from star.hub import lock
from star.hub.check import Source
from star.hub.sources import packages, published_prompts, sources


def repositories(config: Config) -> list[Source]:
    """The hub repositories that the stages of `config` load; local folders need none."""
    return [source for source in sources(config) if hub.is_repository(source.name)]


def needs(config: Config) -> list[str]:
    """What `fetch` brings, a line each; nothing for a configuration that lies whole on this disk.

    Asks the hub for the commits of unpinned repositories that have none yet, and locks them. Raises InputError as
    `lock.resolve`.
    """
    wanted = repositories(config)
    lock.resolve(wanted)
    lines = [f"{source.name}@{_commit(source)}" for source in wanted]
    lines += [file.name for file in published_prompts(config) if config.prompts.mirror is None]
    return lines + [package.name for package in packages(config) if package.fetch]


def fetch(config: Config) -> Iterator[str]:
    """Bring everything that `config` needs and lock it; yields a line for each thing that is there now.

    Raises InputError, with the remedy: before anything is fetched when the lock cannot be written or an unpinned repository's
    commit cannot be had; when a repository is gated, missing, without safetensors or out of reach; and when a file is not
    what the lock or the hub says.
    """
    wanted = repositories(config)
    lock.resolve(wanted)
    if any(f"{source.name}@{_commit(source)}" not in lock.read().files for source in wanted):
        lock.check_writable()
    for file in published_prompts(config):
        yield f"prompts: {file.fetch()}"
    for source in wanted:
        print(f"{source.key}: fetching {source.name}", file=sys.stderr, flush=True)
        folder, online = _snapshot(source)
        lock.record(source, folder, online)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
        yield f"{source.key}: {source.name}@{folder.name}, {size:.2f} GB in {folder}"
    for package in packages(config):
        if package.fetch:
            yield f"{package.key}: {package.fetch()}"


def _commit(source: Source) -> str:
    return lock.commit(source.name, source.revision, source.revision_key)


def _snapshot(source: Source) -> tuple[Path, bool]:
    """The folder of a repository's files in the hub's cache, complete, and whether the hub gives them.

    Raises InputError as `fetch`.
    """
    at = _commit(source)
    answer = hub.ask(source.name, at, source.first_file)
    answered = answer is None or isinstance(answer, HfHubHTTPError)
    try:
        folder = _download(source, at, local_files_only=not answered)
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a pipeline that diffusers does not know
        why = f"cannot be fetched: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{source.key}: {source.name} {hub.refusal(source.name, at, answer) or why}") from None
    if "model" in source.parts and not any(folder.glob("*.safetensors")):
        raise InputError(f"{source.key}: {source.name} has no safetensors weights at {at}; name a commit that has")
    return folder, answer is None


def _download(source: Source, at: str, local_files_only: bool) -> Path:
    settings = {"revision": at, "local_files_only": local_files_only}
    if "pipeline" not in source.parts:
        return Path(snapshot_download(source.name, allow_patterns=lock.patterns(source.parts), **settings))
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(source.name, use_safetensors=True, **settings))
