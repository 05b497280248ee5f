"""From the core content of a prompt (character spans) to the token columns of every text encoder.

SD3's text columns are CLIP's block (CLIP-L and CLIP-G share its columns), then T5's. Source: ours (method section 3).
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from star.models.attention import CoreColumns
from star.prompts.record import Prompt, Span


def span_columns(tokenizer: PreTrainedTokenizerFast, prompt: str, start: int, end: int, length: int) -> list[int]:
    """Columns of the tokens that overlap prompt[start:end], after truncation to `length`; never a special token."""
    tokens = tokenizer(prompt, truncation=True, max_length=length, return_offsets_mapping=True, verbose=False)
    special = tokenizer.get_special_tokens_mask(tokens.input_ids, already_has_special_tokens=True)
    return [
        column
        for column, ((left, right), is_special) in enumerate(zip(tokens["offset_mapping"], special, strict=True))
        if not is_special and left < end and right > start and right > left
    ]


def chosen_spans(prompt: str, core: Sequence[Span], tokens: str | list[str]) -> Sequence[Span]:
    """The spans whose attention counts: the `core` content, `all` of the prompt, or the core's spans of some kinds."""
    if tokens == "core":
        return core
    if tokens == "all":
        return [Span(prompt, 0, len(prompt), "text")] if prompt else []
    return [span for span in core if span.kind in tokens]


def cut_prompts(tokenizers: list[tuple[PreTrainedTokenizerFast, int]], prompts: Sequence[Prompt]) -> str | None:
    """One line on the prompts that are longer than a tokenizer takes, and on core content that none sees; None where all fit.

    `tokenizers` as in `core_columns`. To be said once, of all the prompts that a stage uses.
    """
    texts = [prompt.text for prompt in prompts]
    parts, cut = [], set()
    for tokenizer, length in tokenizers:
        tokens = tokenizer(texts, truncation=False, verbose=False).input_ids if texts else []
        longer = {i for i, of_prompt in enumerate(tokens) if len(of_prompt) > length}
        parts.append(f"{len(longer)} by {type(tokenizer).__name__} at {length} tokens")
        cut |= longer
    if not cut:
        return None
    lost = [
        (span.text, prompts[i].text)
        for i in sorted(cut)
        for span in prompts[i].core
        if not any(span_columns(t, prompts[i].text, span.start, span.end, length) for t, length in tokenizers)
    ]
    seen = f"no tokenizer sees {len(lost)} core spans, as {lost[0][0]!r} of {lost[0][1]!r}" if lost else "no core span is lost"
    return f"{len(cut)} of {len(prompts)} prompts are cut ({', '.join(parts)}); {seen}"


def core_columns(
    tokenizers: list[tuple[PreTrainedTokenizerFast, int]], prompts: list[str], cores: list[Sequence[Span]]
) -> CoreColumns:
    """Columns and weights of the core content of each prompt.

    `tokenizers` lists (tokenizer, columns of its block) in the order of the text columns. The tokens of one span share its
    weight, spans weigh the same. A span that truncation cut away is dropped (`cut_prompts` says it); a prompt left without core
    tokens has weights of zero, and gets the uniform map.
    """
    rows: list[dict[int, float]] = []
    for prompt, core in zip(prompts, cores, strict=True):
        spans = []
        for span in core:
            columns, offset = [], 0
            for tokenizer, length in tokenizers:
                columns += [offset + c for c in span_columns(tokenizer, prompt, span.start, span.end, length)]
                offset += length
            if columns:
                spans.append(columns)
        weights: dict[int, float] = {}
        for columns in spans:
            for c in columns:
                weights[c] = weights.get(c, 0.0) + 1 / (len(spans) * len(columns))
        rows.append(weights)
    width = max((len(r) for r in rows), default=0) or 1
    index, weight = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        index[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        weight[i, : len(row)] = torch.tensor(list(row.values()))
    return CoreColumns(index, weight)
