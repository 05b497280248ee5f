"""Exact text-image attention from the fused kernel: image queries, core text columns, no N x N matrix.

`install` replaces the processor of every joint attention (`attn`) by one that calls a fused kernel which returns its
log-sum-exp. The same kernel serves rollout and update, recording or not, so recording never changes the model's output. A
recorded probability is exp(q . k / sqrt(d) - lse). SD3.5 Medium's image-only attention (`attn2`), which has no text to record,
goes through the same kernel: PyTorch's own choice may be another one with gradients than without.

Shapes: B batch, A heads, N image tokens, K padded core columns, L text columns, D head width, O recorded blocks.
Source: ours (method section 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
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
    """What the processors of the chosen blocks write while `recording`: one raw map [B, N] a block.

    A map is the mean over `heads`, by default over all.
    """

    blocks: tuple[int, ...]
    heads: tuple[int, ...] | None = None
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

    def raw_maps(self) -> torch.Tensor:
        """What was recorded, in the order of `blocks`, float32 [B, O, N]."""
        return torch.stack([self.maps[b] for b in self.blocks], 1)


def fused_attention(
    q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention and its log-sum-exp ([B, A, N], float32) from one fused, differentiable kernel.

    On a device whose kernels keep the log-sum-exp to themselves it is None; `log_sum_exp` computes it when it is asked for.
    """
    aten, kind, device = torch.ops.aten, v_BAND.dtype, q_BAND.device.type
    with torch.autocast(device, enabled=False):
        if device == "cpu":  # bfloat16 gradients of this kernel are ten times slower than float32 ones
            q, k, v = q_BAND.float(), k_BAND.float(), v_BAND.float()
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        elif device == "cuda":
            q, k, v = q_BAND.to(kind), k_BAND.to(kind), v_BAND
            if kind == torch.float32 or torch.cuda.get_device_capability(q.device) < (8, 0):
                out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
            else:
                out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        else:
            out, lse = F.scaled_dot_product_attention(q_BAND.to(kind), k_BAND.to(kind), v_BAND), None
    return out.to(kind), None if lse is None else lse[..., : q_BAND.shape[2]]


def log_sum_exp(q_BAND: torch.Tensor, k_BAND: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Log-sum-exp of every query's logits over all keys, float32 [B, A, N], from blocks of `rows` queries."""
    keys = k_BAND.float().transpose(-1, -2) * q_BAND.shape[-1] ** -0.5
    return torch.cat([(block.float() @ keys).logsumexp(-1) for block in q_BAND.split(rows, 2)], 2)


def core_probability(q_BAND: torch.Tensor, text_k_BALD: torch.Tensor, lse_BAN: torch.Tensor, core: CoreColumns) -> torch.Tensor:
    """Weighted sum over core columns of the head-averaged attention probability of image queries, float32 [B, N]."""
    heads, width = q_BAND.shape[1], q_BAND.shape[-1]
    index = core.index_BK[:, None, :, None].expand(-1, heads, -1, width)
    k_BAKD = text_k_BALD.gather(2, index).float()
    logit_BANK = q_BAND.float() @ k_BAKD.transpose(-1, -2) * width**-0.5
    p_BNK = (logit_BANK - lse_BAN[..., None].float()).exp().mean(1)
    return (p_BNK * core.weight_BK[:, None]).sum(-1)


def _heads(attn: nn.Module, projected: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
    """A projection [B, N, AD] cut into heads [B, A, N, D], normalised where the model does."""
    split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)


@torch.compiler.disable
def image_attention(attn: nn.Module, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    """The image-only attention of a dual block (diffusers' JointAttnProcessor2_0 without text) through `fused_attention`."""
    q_BAND = _heads(attn, attn.to_q(hidden_states), attn.norm_q)
    k_BAND, v_BAND = _heads(attn, attn.to_k(hidden_states), attn.norm_k), _heads(attn, attn.to_v(hidden_states))
    out = fused_attention(q_BAND, k_BAND, v_BAND)[0].transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](out))


class JointAttention:
    """SD3's joint attention (diffusers' JointAttnProcessor2_0) through `fused_attention`, recording when asked."""

    def __init__(self, block: int, recorder: Recorder) -> None:
        self.block, self.recorder = block, recorder

    @torch.compiler.disable  # recording or not, compiled blocks stay the same program
    def __call__(
        self, attn: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = hidden_states, encoder_hidden_states
        q_BAND = torch.cat(
            [_heads(attn, attn.to_q(image), attn.norm_q), _heads(attn, attn.add_q_proj(text), attn.norm_added_q)], 2
        )
        k_BAND = torch.cat(
            [_heads(attn, attn.to_k(image), attn.norm_k), _heads(attn, attn.add_k_proj(text), attn.norm_added_k)], 2
        )
        v_BAND = torch.cat([_heads(attn, attn.to_v(image)), _heads(attn, attn.add_v_proj(text))], 2)
        out_BAND, lse_BAN = fused_attention(q_BAND, k_BAND, v_BAND)

        n, recorder = image.shape[1], self.recorder
        if recorder.core is not None and self.block in recorder.blocks:
            with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
                recorder.maps[self.block] = self._record(q_BAND, k_BAND, lse_BAN, n)
        out = out_BAND.transpose(1, 2).flatten(2)
        image, text = out[:, :n], out[:, n:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)

    def _record(self, q_BAND: torch.Tensor, k_BAND: torch.Tensor, lse_BAN: torch.Tensor | None, n: int) -> torch.Tensor:
        """The raw map of the recorded samples and heads; the first `n` tokens are the image's."""
        core, heads = self.recorder.core, self.recorder.heads
        b, a = len(core.index_BK), slice(None) if heads is None else list(heads)
        q_BAND, k_BAND = q_BAND[-b:, a, :n], k_BAND[-b:, a]
        lse_BAN = log_sum_exp(q_BAND, k_BAND) if lse_BAN is None else lse_BAN[-b:, a, :n]
        return core_probability(q_BAND, k_BAND[:, :, n:], lse_BAN, core)


def install(transformer: SD3Transformer2DModel, blocks: list[int], heads: list[int] | None = None) -> Recorder:
    """Route every attention through the fused kernel and return the recorder of the chosen blocks and heads.

    Raises ValueError when a block or head is not one of the transformer's.
    """
    for name, chosen, count in (
        ("blocks", blocks, len(transformer.transformer_blocks)),
        ("heads", heads or [], transformer.config.num_attention_heads),
    ):
        if unknown := [i for i in chosen if not 0 <= i < count]:
            raise ValueError(f"allocation.{name}: {unknown} not among this model's {name} 0..{count - 1}")
    recorder = Recorder(tuple(blocks), None if heads is None else tuple(heads))
    for i, block in enumerate(transformer.transformer_blocks):
        block.attn.set_processor(JointAttention(i, recorder))
        if block.attn2 is not None:
            block.attn2.set_processor(image_attention)
    return recorder
