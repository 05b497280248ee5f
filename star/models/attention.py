"""Exact text-image attention from the fused kernel: image queries, core text columns, no N x N matrix.

A block that may be recorded runs a fused kernel which returns its log-sum-exp (`attention_with_lse`), recording or not; the
other blocks run the default attention (`attention`). Which block runs which never changes between rollout and update, so
recording changes no bit and the ratio of the first update is exactly 1. A recorded probability is exp(q . k / sqrt(d) - lse).
A mask says which tokens of a row are keys; padding is none.

Shapes: B batch, A heads, N tokens of the joint row, I image tokens, K padded core columns, L text columns, D head width,
E width of a token, O recorded blocks. Source: ours (docs/method.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from star.allocation.columns import CoreColumns


@dataclass(frozen=True)
class Recorder:
    """What one forward pass is asked to record, and what it recorded: one raw map [B, I] a block.

    A map is the mean over `heads`, by default over all. The model hands over the rows that the columns belong to (with guidance
    by two branches, the conditional half), and says which slices of the joint row are image and text.
    """

    columns: CoreColumns
    blocks: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    maps: dict[int, torch.Tensor] = field(default_factory=dict)

    def of(self, rows: torch.Tensor | slice) -> "Recorder":
        """A fresh recorder for some of the samples."""
        return replace(self, columns=self.columns[rows], maps={})

    def record(
        self, block: int, q_BAND: torch.Tensor, k_BAND: torch.Tensor, lse_BAN: torch.Tensor, image: slice, text: slice
    ) -> None:
        """Keep the map of `block`; queries and keys come as attention saw them, after norm and rotary embedding."""
        heads = slice(None) if self.heads is None else list(self.heads)
        q_BAID, text_k_BALD = q_BAND[:, heads, image], k_BAND[:, heads, text]
        self.maps[block] = core_probability(q_BAID, text_k_BALD, lse_BAN[:, heads, image], self.columns)

    def raw_maps(self) -> torch.Tensor:
        """What was recorded, in the order of `blocks`, float32 [B, O, I]."""
        return torch.stack([self.maps[block] for block in self.blocks], 1)


@dataclass
class Tap:
    """Where a model's attention finds the recorder of the pass that runs, and where image and text stand in its joint row.

    There is no recorder outside, as in a checkpoint's second forward.
    """

    recorder: Recorder | None = None
    image: slice | None = None
    text: slice | None = None

    @contextmanager
    def open(self, recorder: Recorder | None, image: slice, text: slice) -> Iterator[None]:
        """Record inside."""
        self.recorder, self.image, self.text = recorder, image, text
        try:
            yield
        finally:
            self.recorder = None


_STANDS_FOR: ContextVar[str | None] = ContextVar("device whose kernels are meant", default=None)


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """Inside, attention of tensors without data is that device's: what an estimate for another machine counts."""
    token = _STANDS_FOR.set(device)
    try:
        yield
    finally:
        _STANDS_FOR.reset(token)


def _kernels(q_BAND: torch.Tensor) -> str:
    """The device whose kernel runs."""
    return _STANDS_FOR.get() or q_BAND.device.type


def _backend(q_BAND: torch.Tensor, masked: bool) -> SDPBackend:
    """The one kernel of a CUDA device for this precision; left alone, torch may choose another with gradients than without."""
    old = q_BAND.is_cuda and torch.cuda.get_device_capability(q_BAND.device) < (8, 0)
    if masked or q_BAND.dtype == torch.float32 or old:
        return SDPBackend.EFFICIENT_ATTENTION  # which alone takes a mask
    return SDPBackend.FLASH_ATTENTION


def _bias(mask_BN: torch.Tensor | None, queries: torch.Tensor) -> torch.Tensor | None:
    """What a mask of keys adds to the logits, [B, A, N, N] in one row's memory, of the queries' precision."""
    if mask_BN is None:
        return None
    batch, heads, n = queries.shape[:3]
    bias = queries.new_zeros(batch, 1, 1, n + -n % 16)  # the kernels read whole lines of 16
    bias[:, 0, 0, :n].masked_fill_(~mask_BN, float("-inf"))
    return bias[..., :n].expand(batch, heads, n, n)


def attention(
    q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor, mask_BN: torch.Tensor | None = None
) -> torch.Tensor:
    """The default attention, [B, A, N, D], with and without gradients by the same kernel."""
    kind, device = v_BAND.dtype, _kernels(q_BAND)
    if device != q_BAND.device.type:
        return attention_with_lse(q_BAND, k_BAND, v_BAND, mask_BN)[0]
    with torch.autocast(device, enabled=False):
        # On a CPU, bfloat16 gradients of this kernel are ten times slower than float32 ones.
        q, k, v = (x.float() if device == "cpu" else x.to(kind) for x in (q_BAND, k_BAND, v_BAND))
        bias = _bias(mask_BN, q)
        if device == "cuda":
            with sdpa_kernel(_backend(v, mask_BN is not None)):
                out = F.scaled_dot_product_attention(q, k, v, bias)
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias)
    return out.to(kind)


def attention_with_lse(
    q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor, mask_BN: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention and its log-sum-exp ([B, A, N], float32) from one fused, differentiable kernel.

    On a device whose kernels keep the log-sum-exp to themselves it is None; `log_sum_exp` computes it when it is asked for.
    """
    aten, kind, device = torch.ops.aten, v_BAND.dtype, _kernels(q_BAND)
    with torch.autocast(q_BAND.device.type, enabled=False):
        q, k, v = (x.float() if device == "cpu" else x.to(kind) for x in (q_BAND, k_BAND, v_BAND))
        bias = _bias(mask_BN, q)
        if device == "cpu":
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        elif device == "cuda":
            if _backend(v, mask_BN is not None) == SDPBackend.EFFICIENT_ATTENTION:
                out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[:2]
            else:
                out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        else:
            out, lse = F.scaled_dot_product_attention(q, k, v, bias), None
    return out.to(kind), None if lse is None else lse[..., : q_BAND.shape[2]]


def log_sum_exp(
    q_BAND: torch.Tensor, k_BAND: torch.Tensor, mask_BN: torch.Tensor | None = None, rows: int = 512
) -> torch.Tensor:
    """Log-sum-exp of every query's logits over the keys that count, float32 [B, A, N], from blocks of `rows` queries."""
    keys = k_BAND.float().transpose(-1, -2) * q_BAND.shape[-1] ** -0.5
    away = 0.0 if mask_BN is None else torch.zeros(mask_BN.shape, device=keys.device).masked_fill(~mask_BN, float("-inf"))
    away = away if mask_BN is None else away[:, None, None]
    return torch.cat([(block.float() @ keys + away).logsumexp(-1) for block in q_BAND.split(rows, 2)], 2)


class JointAttention:
    """The attention of a joint block by our kernels; `watched` by a block's number and a tap, it may be recorded.

    A family's own class projects queries, keys and values, hands them over as attention is to see them, after norm and rotary
    embedding, and takes the output apart. diffusers passes on only the arguments that its `__call__` names.
    """

    def __init__(self, watched: tuple[int, Tap] | None = None) -> None:
        self.watched = watched

    def attend(
        self, q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor, mask_BN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output of the row, heads joined, [B, N, E]."""
        row = self._recorded if self.watched else attention
        return row(q_BAND, k_BAND, v_BAND, mask_BN).transpose(1, 2).flatten(2)

    def _recorded(
        self, q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor, mask_BN: torch.Tensor | None
    ) -> torch.Tensor:
        """By the kernel with the log-sum-exp; recorded when the model's tap is open."""
        out_BAND, lse_BAN = attention_with_lse(q_BAND, k_BAND, v_BAND, mask_BN)
        block, tap = self.watched
        if tap.recorder is not None and block in tap.recorder.blocks:
            asked = slice(len(q_BAND) - len(tap.recorder.columns), None)  # the samples that columns are given of come last
            with torch.no_grad(), torch.autocast(q_BAND.device.type, enabled=False):
                if lse_BAN is None:
                    lse_BAN = log_sum_exp(q_BAND, k_BAND, mask_BN)
                tap.recorder.record(block, q_BAND[asked], k_BAND[asked], lse_BAN[asked], tap.image, tap.text)
        return out_BAND


def watched(joint: type[JointAttention]) -> type[JointAttention]:
    """The same attention left out of compiled blocks, which stay the same program, recording or not."""
    return type(f"Watched{joint.__name__}", (joint,), {"__call__": torch.compiler.disable(joint.__call__)})


def projected(attn: nn.Module, x_BNE: torch.Tensor, text: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [B, A, N, D] of a stream, normalised where the model does; `text` by the added projections."""
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if text else ("to_q", "to_k", "to_v")
    norms = (attn.norm_added_q, attn.norm_added_k, None) if text else (attn.norm_q, attn.norm_k, None)
    heads = (getattr(attn, name)(x_BNE).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for name in names)
    return tuple(split if norm is None else norm(split) for split, norm in zip(heads, norms, strict=True))


def rotated(x_BAND: torch.Tensor, turn_BND: torch.Tensor) -> torch.Tensor:
    """Queries or keys whose pairs of features are turned by complex factors, [B or 1, N, D / 2]."""
    turned = torch.view_as_complex(x_BAND.float().unflatten(-1, (-1, 2)).contiguous()) * turn_BND[:, None]
    return torch.view_as_real(turned).flatten(3).to(x_BAND.dtype)


def core_probability(q_BAID: torch.Tensor, text_k_BALD: torch.Tensor, lse_BAI: torch.Tensor, core: CoreColumns) -> torch.Tensor:
    """Weighted sum over core columns of the head-averaged attention probability of image queries, float32 [B, I]."""
    heads, width = q_BAID.shape[1], q_BAID.shape[-1]
    index = core.index_BK[:, None, :, None].expand(-1, heads, -1, width)
    k_BAKD = text_k_BALD.gather(2, index).float()
    logit_BAIK = q_BAID.float() @ k_BAKD.transpose(-1, -2) * width**-0.5
    p_BIK = (logit_BAIK - lse_BAI[..., None].float()).exp().mean(1)
    return (p_BIK * core.weight_BK[:, None]).sum(-1)


def check_recordable(blocks: tuple[int, ...], heads: tuple[int, ...] | None, counts: tuple[int, int]) -> None:
    """Raise ValueError when a block or head is not among the model's `counts` (blocks, heads)."""
    for name, chosen, count in (("blocks", blocks, counts[0]), ("heads", heads or (), counts[1])):
        if unknown := [i for i in chosen if not 0 <= i < count]:
            raise ValueError(f"allocation.{name}: {unknown} not among this model's {name} 0..{count - 1}")
