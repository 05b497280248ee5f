"""The quoted target of a lettering prompt: the one rule by which core content, reward and score find it. Source: ours.

Flow-GRPO (arXiv 2505.05470) takes what stands between the first two straight quotation marks; so does this rule where they are
the only ones and hold something.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from star.errors import InputError
from star.prompts.record import Prompt
from star.prompts.text import plain

_CLOSING = {'"': '"', "“": "”", "„": "“”", "«": "»", "「": "」", "『": "』", "＂": "＂"}  # by the mark that opens
_MARKS = frozenset("".join([*_CLOSING, *_CLOSING.values()]))


def _pairs(prompt: str) -> Iterator[tuple[int, int]]:
    """Places (opening, closing) of the paired marks, from left to right; what stands inside a pair is text."""
    at = 0
    while at < len(prompt):
        closing = _CLOSING.get(prompt[at], "")
        ends = [end for end in (prompt.find(mark, at + 1) for mark in closing) if end >= 0]
        if ends:
            yield at, min(ends)
            at = min(ends)
        at += 1


def quotations(prompt: str) -> list[tuple[int, int]]:
    """Where the quoted parts of a prompt lie, without their quotation marks; blank ones do not count."""
    return [(start + 1, end) for start, end in _pairs(prompt) if plain(prompt[start + 1 : end])]


def lonely_mark(prompt: str) -> str | None:
    """A quotation mark that has no partner; None where all are paired."""
    inside: set[int] = set()
    for start, end in _pairs(prompt):
        inside.update(range(start, end + 1))
    return next((mark for at, mark in enumerate(prompt) if mark in _MARKS and at not in inside), None)


def target(prompt: str, metadata: dict[str, Any]) -> str | None:
    """What the picture of a prompt should read: its metadata's `text`, else the first quoted part; None where there is none.

    Raises InputError where a quotation mark has no partner, so that nobody can say what is quoted.
    """
    if plain(metadata.get("text") or ""):
        return metadata["text"]
    if (mark := lonely_mark(prompt)) is not None:
        raise InputError(f"prompt {prompt!r}: a {mark} without a partner; pair it, or name the target in metadata.text")
    places = quotations(prompt)
    return prompt[slice(*places[0])] if places else None


def has_target(prompt: str, metadata: dict[str, Any]) -> bool:
    """Whether `target` finds one, beyond doubt."""
    named = plain(metadata.get("text") or "")
    return bool(named or (quotations(prompt) and lonely_mark(prompt) is None))


def several_targets(prompts: Sequence[Prompt]) -> str | None:
    """One line on the prompts that quote more than one text and do not say which counts; None where there are none."""
    unsaid = [p for p in prompts if not plain(p.metadata.get("text") or "") and len(quotations(p.text)) > 1]
    if not unsaid:
        return None
    first = unsaid[0].text
    return (
        f"{len(unsaid)} of {len(prompts)} prompts quote several texts, as {first!r} does: the picture is to show the first, "
        f"here {target(first, {})!r}; metadata.text names another"
    )
