"""Exact text-image attention from the fused kernel: image queries, core text columns, no N x N matrix.

`install` replaces the processor of every joint attention (`attn`, never the image-only `attn2` of SD3.5 Medium) by one that
calls a fused kernel which returns its log-sum-exp. The same kernel serves rollout and update, recording or not, so recording
never changes the model's output. A recorded probability is exp(q . k / sqrt(d) - lse).

Shapes: B batch, A heads, N image tokens, K padded core columns, L text columns, D head width. Source: ours (method section 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import SD3Transformer2DModel
from torch import nn


@dataclass(frozen=True)
class CoreColumns:
    """Core text columns of a batch: indices int64 [B, K] into the text columns, weights float32 [B, K] (0 = padding).

    The weights of one sample sum to 1, or to 0 when its prompt has no core token.
    """

    index_BK: torch.Tensor
    weight_BK: torch.Tensor

    def to(self, device: torch.device) -> "CoreColumns":
        return CoreColumns(self.index_BK.to(device), self.weight_BK.to(device))


@dataclass
class Recorder:
    """What the processors of the chosen blocks write while `recording`: one raw map [B, N] a block."""

    blocks: tuple[int, ...]
    core: CoreColumns | None = None
    maps: dict[int, torch.Tensor] = field(default_factory=dict)

    @contextmanager
    def recording(self, core: CoreColumns) -> Iterator[None]:
        """Record the last `len(core)` samples of the batch (with guidance, the conditional branch comes last)."""
        self.core, self.maps = core, {}
        try:
            yield
        finally:
            self.core = None

    def raw_map(self) -> torch.Tensor:
        """Mean over the chosen blocks of what was recorded, float32 [B, N]."""
        return torch.stack([self.maps[b] for b in self.blocks]).mean(0)


def fused_attention(q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp ([B, A, N], float32) from one fused, differentiable kernel."""
    aten, kind = torch.ops.aten, v_BAND.dtype
    with torch.autocast(q_BAND.device.type, enabled=False):
        if q_BAND.device.type == "cpu":  # bfloat16 gradients of this kernel are ten times slower than float32 ones
            q, k, v = q_BAND.float(), k_BAND.float(), v_BAND.float()
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        elif kind == torch.float32:
            out, lse = aten._scaled_dot_product_efficient_attention(q_BAND, k_BAND, v_BAND, None, True)[:2]
        else:
            q, k = q_BAND.to(kind), k_BAND.to(kind)
            out, lse = aten._scaled_dot_product_flash_attention(q, k, v_BAND)[:2]
    return out.to(kind), lse[..., : q_BAND.shape[2]]


def core_probability(q_BAND: torch.Tensor, text_k_BALD: torch.Tensor, lse_BAN: torch.Tensor, core: CoreColumns) -> torch.Tensor:
    """Weighted sum over core columns of the head-averaged attention probability of image queries, float32 [B, N]."""
    heads, width = q_BAND.shape[1], q_BAND.shape[-1]
    index = core.index_BK[:, None, :, None].expand(-1, heads, -1, width)
    k_BAKD = text_k_BALD.gather(2, index).float()
    logit_BANK = q_BAND.float() @ k_BAKD.transpose(-1, -2) * width**-0.5
    p_BNK = (logit_BANK - lse_BAN[..., None].float()).exp().mean(1)
    return (p_BNK * core.weight_BK[:, None]).sum(-1)


class JointAttention:
    """SD3's joint attention (diffusers' JointAttnProcessor2_0) through `fused_attention`, recording when asked."""

    def __init__(self, block: int, recorder: Recorder) -> None:
        self.block, self.recorder = block, recorder

    def __call__(
        self, attn: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def heads(projected: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        image, text = hidden_states, encoder_hidden_states
        q_BAND = torch.cat([heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        k_BAND = torch.cat([heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        v_BAND = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], 2)
        out_BAND, lse_BAN = fused_attention(q_BAND, k_BAND, v_BAND)

        n, recorder = image.shape[1], self.recorder
        if recorder.core is not None and self.block in recorder.blocks:
            b = len(recorder.core.index_BK)
            with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
                recorder.maps[self.block] = core_probability(
                    q_BAND[-b:, :, :n], k_BAND[-b:, :, n:], lse_BAN[-b:, :, :n], recorder.core
                )
        out = out_BAND.transpose(1, 2).flatten(2)
        image, text = out[:, :n], out[:, n:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def install(transformer: SD3Transformer2DModel, blocks: list[int]) -> Recorder:
    """Route every joint attention through the fused kernel and return the recorder of the chosen blocks.

    Raises ValueError when a block number is not one of the transformer's.
    """
    count = len(transformer.transformer_blocks)
    if unknown := [b for b in blocks if not 0 <= b < count]:
        raise ValueError(f"allocation.blocks: {unknown} not among this model's blocks 0..{count - 1}")
    recorder = Recorder(tuple(blocks))
    for i, block in enumerate(transformer.transformer_blocks):
        block.attn.set_processor(JointAttention(i, recorder))
    return recorder
