"""From the core content of a prompt (character spans) to the token columns that a model's attention can look at.

Shapes: B batch, K padded core columns. Source: ours (docs/method.md).
"""

import warnings
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


def token_columns(tokenizer: PreTrainedTokenizerFast, prompt: str, span: Span, length: int) -> list[int]:
    """Columns of the tokens that overlap a span of `prompt`, after truncation to `length`; never a special token."""
    tokens = tokenizer(prompt, truncation=True, max_length=length, return_offsets_mapping=True, verbose=False)
    special = tokenizer.get_special_tokens_mask(tokens.input_ids, already_has_special_tokens=True)
    return [
        column
        for column, ((left, right), is_special) in enumerate(zip(tokens["offset_mapping"], special, strict=True))
        if not is_special and left < span.end and right > span.start and right > left
    ]


def chosen_spans(prompt: Prompt, tokens: str | list[str]) -> tuple[Span, ...]:
    """The spans whose attention counts: the `core` content, `all` of the prompt, or the core's spans of some kinds."""
    if tokens == "core":
        return prompt.core
    if tokens == "all":
        return (Span(prompt.text, 0, len(prompt.text), "text"),) if prompt.text else ()
    return tuple(span for span in prompt.core if span.kind in tokens)


def core_columns(model: "FlowModel", prompts: Sequence[Prompt], tokens: str | list[str] = "core") -> CoreColumns:
    """Columns and weights of the content that counts in each prompt, on the model's device.

    The tokens of one span share its weight, spans weigh the same. A span that truncation cut away is dropped with a warning; a
    prompt left without core tokens has weights of zero, and gets the uniform map.
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
    kept = []
    for span, columns in zip(spans, model.span_columns(prompt.text, spans), strict=True):
        if columns:
            kept.append(columns)
        else:
            warnings.warn(f"{span.text!r} is cut away by truncation in {prompt.text!r}", stacklevel=3)
    weights: dict[int, float] = {}
    for columns in kept:
        for column in columns:
            weights[column] = weights.get(column, 0.0) + 1 / (len(kept) * len(columns))
    return weights
