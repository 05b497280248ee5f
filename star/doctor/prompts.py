"""Published prompt files: in the mirror or the cache, unchanged, or how to get them."""

from collections.abc import Iterator

from star.config import Config
from star.errors import InputError
from star.hub.sources import published_prompts
from star.worlds.coco import published


def check(config: Config) -> Iterator[tuple[bool, str]]:
    """One line a file; none where everything is generated."""
    for _, name in published_prompts(config):
        yield _file(name, config.prompts.mirror)


def _file(name: str, mirror: str | None) -> tuple[bool, str]:
    try:
        found = published.local(name, mirror)
    except InputError as error:
        return False, f"prompts: {error}"
    if found is None:
        remedy = "`star fetch` with this configuration and a network brings it, or set prompts.mirror"
        return False, f"prompts: {name} is not in {published.CACHE}: {remedy}"
    return True, f"prompts: {found}, the published file"
