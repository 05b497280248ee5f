"""Weights from folders and from the model hub, pinned to a commit.

What is whole in the hub's cache is loaded without a network. For anything else the hub is asked once, a few seconds at most,
before a library may download: transformers asks a hub out of reach six times for every file, close to a minute each.
"""

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from star.errors import InputError

TIMEOUT = 5.0  # seconds for an answer


def is_repository(source: str) -> bool:
    """Whether `source` names a repository, owner/name, and no folder of this machine."""
    return not Path(source).is_dir() and source.count("/") == 1 and not source.startswith((".", "/"))


def is_commit(revision: str | None) -> bool:
    """Whether a revision can never mean something else."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def check_pin(source: str, revision: str | None, key: str) -> None:
    """Raise InputError when the repository that `key` names comes without a commit; a folder needs none."""
    if is_repository(source) and not is_commit(revision):
        pin = f"{key.removesuffix('model')}revision" if key.endswith("model") else f"{key}_revision"
        raise InputError(
            f"{pin}: pin the commit of {source} (40 hex digits), because hub repositories change; "
            f"`hf models info {source} --expand sha` prints today's"
        )


def attempt(request: Callable[[], object]) -> Exception | None:
    """What `request` raised; a TimeoutError after TIMEOUT seconds, whatever it waits for: name servers know no other limit."""
    raised: list[Exception | None] = []

    def run() -> None:
        try:
            request()
            raised.append(None)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return raised[0] if raised else TimeoutError(f"no answer within {TIMEOUT:g} seconds")


def ask(repository: str, revision: str, file: str) -> Exception | None:
    """What stands against a download of `file`: one request without retry; None is a yes."""
    url = hf_hub_url(repository, file, revision=revision)
    return attempt(lambda: get_hf_file_metadata(url, timeout=TIMEOUT))


def refusal(repository: str, revision: str, answer: Exception | None) -> str | None:
    """The `answer` of `ask` in words, with the remedy; None where downloading is worth a try."""
    if answer is None or isinstance(answer, EntryNotFoundError):
        return None
    if isinstance(answer, GatedRepoError):
        login = "with `hf auth login` log in to" if get_token() is None else "the token of this machine must belong to"
        return f"is gated; accept its licence at {constants.ENDPOINT}/{repository}, and {login} the account that did"
    if isinstance(answer, RevisionNotFoundError):
        return f"has no commit {revision}; `hf models info {repository} --expand sha` prints today's"
    if isinstance(answer, RepositoryNotFoundError):
        return "is not on the hub, or private; correct the name, or log in with `hf auth login`"
    if isinstance(answer, HfHubHTTPError):
        status = answer.response.status_code
        return f"is refused (HTTP {status}); log in again with `hf auth login`" if status in (401, 403) else None
    why = " ".join(str(answer).split()) or type(answer).__name__
    return (
        f"is not whole in the hub cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not answer ({why}); "
        f"connect this machine, or copy into the cache what `hf download {repository} --revision {revision}` fetches "
        "elsewhere, or name a folder"
    )


def load(
    cls: type,
    source: str,
    revision: str | None,
    key: str,
    file: str = "config.json",
    whole: Callable[[Any], bool] = lambda loaded: True,
    **settings: object,
) -> Any:
    """`cls.from_pretrained` of a folder or a repository, which must have `file`.

    What a cache holds of a repository is passed over when it cannot be loaded, or is not `whole` in the caller's eyes.
    Raises InputError, naming `key`, when the hub does not answer or refuses; else what `from_pretrained` raises.
    """
    if not is_repository(source):
        return cls.from_pretrained(source, **settings)
    try:
        loaded = cls.from_pretrained(source, revision=revision, local_files_only=True, **settings)
        if whole(loaded):
            return loaded
    except OSError:  # a file is missing
        pass
    if refused := refusal(source, revision, ask(source, revision, file)):
        raise InputError(f"{key}: {source} {refused}")
    print(f"fetching {source} for {key} into {constants.HF_HUB_CACHE}", file=sys.stderr)
    return cls.from_pretrained(source, revision=revision, **settings)


def file(source: str, revision: str | None, key: str, name: str) -> Path:
    """The file `name` of a repository, from the cache or else the hub. Raises InputError as `load`, and where there is none."""
    try:
        return Path(hf_hub_download(source, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if refused := refusal(source, revision, answer := ask(source, revision, name)):
        raise InputError(f"{key}: {source} {refused}")
    if isinstance(answer, EntryNotFoundError):
        raise InputError(f"{key}: {source} has no {name} at {revision}; name another repository or commit")
    return Path(hf_hub_download(source, name, revision=revision))
