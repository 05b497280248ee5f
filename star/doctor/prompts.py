"""Published prompt files: in the mirror or the cache, unchanged, or how to get them."""

from collections.abc import Iterator

from star.config import Config
from star.errors import InputError
from star.hub.sources import published_prompts
from star.worlds.door import PromptFile


def check(config: Config) -> Iterator[tuple[bool, str]]:
    """One line a file; none where everything is generated."""
    for file in published_prompts(config):
        yield _local(file)


def _local(file: PromptFile) -> tuple[bool, str]:
    try:
        found = file.local()
    except InputError as error:
        return False, f"prompts: {error}"
    if found is None:
        remedy = "`star fetch` with this configuration and a network brings it, or set prompts.mirror"
        return False, f"prompts: {file.name} is not on this machine: {remedy}"
    return True, f"prompts: {found}, the published file"
