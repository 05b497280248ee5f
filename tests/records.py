"""Prompts for tests, of which most matter by their text and metadata alone."""

from star.prompts.record import Prompt


def asked(text: str, metadata: dict | None = None, **more: object) -> Prompt:
    """A prompt of no task in particular."""
    return Prompt(**{"id": "x", "task": "any", "tag": "any", "text": text, "metadata": metadata or {}} | more)
