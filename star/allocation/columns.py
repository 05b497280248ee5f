"""From the core content of a prompt (character spans) to the token columns that a model's attention can look at.

Shapes: B batch, K padded core columns. Source: ours (docs/method.md).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerFast

from star.prompts.record import Prompt, Span

if TYPE_CHECKING:
    from star.models.door import FlowModel


@dataclass(frozen=True)
class CoreColumns:
    """Core text columns of a batch: indices int64 [B, K] into the text columns, weights float32 [B, K] (0 = padding).

    The weights of one sample sum to 1, or to 0 when its prompt has no core token.
    """

    index_BK: torch.Tensor
    weight_BK: torch.Tensor

    def to(self, device: torch.device) -> "CoreColumns":
        return CoreColumns(self.index_BK.to(device), self.weight_BK.to(device))

    def __getitem__(self, rows: torch.Tensor) -> "CoreColumns":
        return CoreColumns(self.index_BK[rows], self.weight_BK[rows])

    def __len__(self) -> int:
        return len(self.index_BK)


@dataclass(frozen=True)
class TextBlock:
    """A block of text columns: the tokens that one tokenizer makes of a prompt, as the encoder's template frames it.

    `frame` is what the template puts before and after the prompt. Of the tokens of all, the first `dropped` have no column, and
    at most `length` have.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    length: int
    frame: tuple[str, str] = ("", "")
    dropped: int = 0

    def tokens(self, prompt: str) -> list[int]:
        """The tokens that have a column, after truncation."""
        return self.tokenizer(self._framed(prompt), truncation=True, max_length=self._kept, verbose=False).input_ids[
            self.dropped :
        ]

    def cut(self, prompts: Sequence[str]) -> set[int]:
        """The places of prompts that are longer than the block."""
        framed = [self._framed(prompt) for prompt in prompts]
        tokens = self.tokenizer(framed, truncation=False, verbose=False).input_ids if framed else []
        return {i for i, of_prompt in enumerate(tokens) if len(of_prompt) > self._kept}

    def columns(self, prompt: str, span: Span) -> list[int]:
        """Columns of the tokens that overlap a span of `prompt`, after truncation; never a special token, nor the frame's."""
        framed, before = self._framed(prompt), len(self.frame[0])
        tokens = self.tokenizer(framed, truncation=True, max_length=self._kept, return_offsets_mapping=True, verbose=False)
        special = self.tokenizer.get_special_tokens_mask(tokens.input_ids, already_has_special_tokens=True)
        return [
            token - self.dropped
            for token, ((left, right), is_special) in enumerate(zip(tokens["offset_mapping"], special, strict=True))
            if not is_special and left < before + span.end and right > before + span.start and right > left
        ]

    @property
    def _kept(self) -> int:
        return self.length + self.dropped

    def _framed(self, prompt: str) -> str:
        return self.frame[0] + prompt + self.frame[1]


def chosen_spans(prompt: Prompt, tokens: str | list[str]) -> tuple[Span, ...]:
    """The spans whose attention counts: the `core` content, `all` of the prompt, or the core's spans of some kinds."""
    if tokens == "core":
        return prompt.core
    if tokens == "all":
        return (Span(prompt.text, 0, len(prompt.text), "text"),) if prompt.text else ()
    return tuple(span for span in prompt.core if span.kind in tokens)


def cut_prompts(blocks: Sequence[TextBlock], prompts: Sequence[Prompt]) -> str | None:
    """One line on the prompts that are longer than a text block, and on core content that no block has; None where all fit.

    To be said once, of all the prompts that a stage uses.
    """
    texts = [prompt.text for prompt in prompts]
    parts, cut = [], set()
    for block in blocks:
        longer = block.cut(texts)
        parts.append(f"{len(longer)} by {type(block.tokenizer).__name__} at {block.length} tokens")
        cut |= longer
    if not cut:
        return None
    lost = [
        (span.text, prompts[i].text)
        for i in sorted(cut)
        for span in prompts[i].core
        if not any(block.columns(prompts[i].text, span) for block in blocks)
    ]
    seen = f"no tokenizer sees {len(lost)} core spans, as {lost[0][0]!r} of {lost[0][1]!r}" if lost else "no core span is lost"
    return f"{len(cut)} of {len(prompts)} prompts are cut ({', '.join(parts)}); {seen}"


def span_columns(blocks: Sequence[TextBlock], prompt: str, span: Span) -> list[int]:
    """The columns of a span among all text columns, whose blocks follow each other; none for what truncation cut away."""
    starts = itertools.accumulate((block.length for block in blocks), initial=0)
    return [start + column for start, block in zip(starts, blocks, strict=False) for column in block.columns(prompt, span)]


def core_columns(model: "FlowModel", prompts: Sequence[Prompt], tokens: str | list[str] = "core") -> CoreColumns:
    """Columns and weights of the content that counts in each prompt, on the model's device.

    The tokens of one span share its weight, spans weigh the same. A span that truncation cut away is dropped (`cut_prompts`
    says it); a prompt left without core tokens has weights of zero, and gets the uniform map.
    """
    weights = [_weights(model, prompt, chosen_spans(prompt, tokens)) for prompt in prompts]
    width = max((len(row) for row in weights), default=0) or 1
    index_BK, weight_BK = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width)
    for i, row in enumerate(weights):
        index_BK[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        weight_BK[i, : len(row)] = torch.tensor(list(row.values()))
    return CoreColumns(index_BK, weight_BK).to(model.device)


def _weights(model: "FlowModel", prompt: Prompt, spans: Sequence[Span]) -> dict[int, float]:
    """Column -> weight of one prompt."""
    blocks = model.text_blocks()
    kept = [columns for span in spans if (columns := span_columns(blocks, prompt.text, span))]
    weights: dict[int, float] = {}
    for columns in kept:
        for column in columns:
            weights[column] = weights.get(column, 0.0) + 1 / (len(kept) * len(columns))
    return weights
