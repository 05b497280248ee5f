"""Prompts of the user's own, from a file of any maker (star.prompts.record.read_foreign).

What a line does not say is made: core content from the metadata (geneval), the quoted text (ocr) or the content words.
"""

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from star.errors import InputError
from star.prompts import core, quotes
from star.prompts.record import Line, Prompt, Span, read_foreign, refuse_repeated_ids


def records(path: Path, task: str, scorers: Collection[str]) -> list[Prompt]:
    """The prompt records of a file for a task whose pictures `scorers` judge.

    Raises InputError, naming file and line, for what does not fit, prompts that a scorer cannot judge, and repeated ids.
    """
    lines = read_foreign(path)
    prompts = [_prompt(line, f"{task}-{number:05d}", task) for number, line in enumerate(lines)]
    refuse_repeated_ids(path, prompts)
    completed = [_completed(line, prompt, scorers) for line, prompt in zip(lines, prompts, strict=True)]
    if "ocr" in scorers and (said := quotes.several_targets(prompts)):
        print(f"{path}: {said}", file=sys.stderr)
    return completed


def _prompt(line: Line, name: str, task: str) -> Prompt:
    tag = line.tag or task
    return Prompt(line.id or name, task, tag, line.text, metadata={"tag": tag, **line.metadata, "prompt": line.text})


def _completed(line: Line, prompt: Prompt, scorers: Collection[str]) -> Prompt:
    """The prompt with its core content, and its target where lettering is judged."""
    if "geneval" in scorers and not prompt.metadata.get("include"):
        raise InputError(f"{line.where}: no `metadata.include`; geneval must know which objects to look for")
    try:
        if "ocr" in scorers:
            prompt = replace(prompt, metadata=prompt.metadata | _lettering(prompt))
        return replace(prompt, core=_core(prompt, scorers) if line.core is None else line.core)
    except InputError as error:
        raise InputError(f"{line.where}: {error}") from None


def _lettering(prompt: Prompt) -> dict[str, str]:
    target = quotes.target(prompt.text, prompt.metadata)
    if target is None:
        raise InputError(f"prompt {prompt.text!r} has no word in double quotes; an ocr prompt quotes what is to be written")
    return {"text": target}


def _core(prompt: Prompt, scorers: Collection[str]) -> tuple[Span, ...]:
    if "geneval" in scorers:
        return core.described(prompt.text, prompt.metadata["include"])
    if "ocr" not in scorers:
        return core.content_words(prompt.text)
    if quotes.quotations(prompt.text):
        return core.quoted(prompt.text)
    return core.written(prompt.text, prompt.metadata["text"])
