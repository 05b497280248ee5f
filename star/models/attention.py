"""Exact text-image attention from the fused kernel: image queries, core text columns, no N x N matrix.

A block that may be recorded runs a fused kernel which returns its log-sum-exp (`attention_with_lse`), recording or not; the
other blocks run the default attention (`attention`). Which block runs which never changes between rollout and update, so
recording changes no bit and the ratio of the first update is exactly 1. A recorded probability is exp(q . k / sqrt(d) - lse).

Shapes: B batch, A heads, N tokens of the joint row, I image tokens, K padded core columns, L text columns, D head width,
O recorded blocks. Source: ours (docs/method.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
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
        self, block: int, q_BAND: torch.Tensor, k_BAND: torch.Tensor, lse_BAN: torch.Tensor | None, image: slice, text: slice
    ) -> None:
        """Keep the map of `block`; queries and keys come as attention saw them, after norm and rotary embedding."""
        heads = slice(None) if self.heads is None else list(self.heads)
        q_BAID, k_BAND = q_BAND[:, heads, image], k_BAND[:, heads]
        lse_BAI = log_sum_exp(q_BAID, k_BAND) if lse_BAN is None else lse_BAN[:, heads, image]
        self.maps[block] = core_probability(q_BAID, k_BAND[:, :, text], lse_BAI, self.columns)

    def raw_maps(self) -> torch.Tensor:
        """What was recorded, in the order of `blocks`, float32 [B, O, I]."""
        return torch.stack([self.maps[block] for block in self.blocks], 1)


@dataclass
class Tap:
    """Where a model's attention finds the recorder of the pass that runs; none outside, as in a checkpoint's second forward."""

    recorder: Recorder | None = None

    @contextmanager
    def open(self, recorder: Recorder | None) -> Iterator[None]:
        """Record inside."""
        self.recorder = recorder
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


def _backend(q_BAND: torch.Tensor) -> SDPBackend:
    """The one kernel of a CUDA device for this precision; left alone, torch may choose another with gradients than without."""
    if q_BAND.dtype == torch.float32 or (q_BAND.is_cuda and torch.cuda.get_device_capability(q_BAND.device) < (8, 0)):
        return SDPBackend.EFFICIENT_ATTENTION
    return SDPBackend.FLASH_ATTENTION


def attention(q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor) -> torch.Tensor:
    """The default attention, [B, A, N, D], with and without gradients by the same kernel."""
    kind, device = v_BAND.dtype, _kernels(q_BAND)
    if device != q_BAND.device.type:
        return attention_with_lse(q_BAND, k_BAND, v_BAND)[0]
    with torch.autocast(device, enabled=False):
        if device == "cpu":  # bfloat16 gradients of this kernel are ten times slower than float32 ones
            out = F.scaled_dot_product_attention(q_BAND.float(), k_BAND.float(), v_BAND.float())
        elif device == "cuda":
            with sdpa_kernel(_backend(v_BAND)):
                out = F.scaled_dot_product_attention(q_BAND.to(kind), k_BAND.to(kind), v_BAND)
        else:
            out = F.scaled_dot_product_attention(q_BAND.to(kind), k_BAND.to(kind), v_BAND)
    return out.to(kind)


def attention_with_lse(
    q_BAND: torch.Tensor, k_BAND: torch.Tensor, v_BAND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention and its log-sum-exp ([B, A, N], float32) from one fused, differentiable kernel.

    On a device whose kernels keep the log-sum-exp to themselves it is None; `log_sum_exp` computes it when it is asked for.
    """
    aten, kind, device = torch.ops.aten, v_BAND.dtype, _kernels(q_BAND)
    with torch.autocast(q_BAND.device.type, enabled=False):
        if device == "cpu":
            q, k, v = q_BAND.float(), k_BAND.float(), v_BAND.float()
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        elif device == "cuda":
            q, k, v = q_BAND.to(kind), k_BAND.to(kind), v_BAND
            if _backend(v_BAND) == SDPBackend.EFFICIENT_ATTENTION:
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
