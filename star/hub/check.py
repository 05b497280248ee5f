"""What a model's source is, and whether the model hub gives it, in words that name the remedy.

The hub is asked once, a few seconds at most, before a library may download: transformers asks a hub out of reach six times
for every file, close to a minute each.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TIMEOUT = 5.0  # seconds for an answer


def is_repository(source: str) -> bool:
    """Whether `source` names a repository, owner/name, and no folder of this machine."""
    return not Path(source).is_dir() and source.count("/") == 1 and not source.startswith((".", "/"))


def is_commit(revision: str | None) -> bool:
    """Whether a revision can never mean something else."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


class Source(NamedTuple):
    """Where a model comes from, as a key of the configuration names it, and what is loaded of it.

    `name` is a folder or a repository, owner/name. Of `parts`, "pipeline" is a diffusers pipeline whole; else "model" and
    "tokenizer", "images" (their processor).
    """

    key: str
    name: str
    revision: str | None
    parts: tuple[str, ...]

    @property
    def revision_key(self) -> str:
        """The key of the configuration that pins it."""
        return f"{self.key.removesuffix('model')}revision" if self.key.endswith("model") else f"{self.key}_revision"

    @property
    def first_file(self) -> str:
        """The file that every such source has."""
        return "model_index.json" if "pipeline" in self.parts else "config.json"


class Package(NamedTuple):
    """Weights that do not come from the hub: a file, or what a package brings.

    `check` says where they are, or raises InputError with the remedy; `fetch`, where there is something to fetch, brings
    them and says what came.
    """

    key: str
    name: str
    check: Callable[[], str]
    fetch: Callable[[], str] | None = None


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
        return f"has no commit {revision}; correct the revision, or set it to null and `star fetch` locks today's"
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
