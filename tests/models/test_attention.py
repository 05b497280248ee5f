"""The attention kernels and the recorded probability against an explicit float64 softmax."""

from collections.abc import Callable

import pytest
import torch

from star.allocation.columns import CoreColumns
from star.models.attention import (
    Recorder,
    attention,
    attention_with_lse,
    check_recordable,
    core_probability,
    log_sum_exp,
)


def _explicit(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
def test_core_probability_equals_an_explicit_softmax(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    n, text = 64, 20
    q, k, v = (torch.randn(2, 3, n + text, 32).mul(2).to(dtype) for _ in range(3))
    out, lse = attention_with_lse(q, k, v)
    p = _explicit(q, k)
    core = CoreColumns(torch.tensor([[3, 7, 0], [19, 0, 0]]), torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]))
    columns = p[:, :, :n, n:].mean(1)
    expected = torch.stack([0.25 * columns[0, :, 3] + 0.75 * columns[0, :, 7], columns[1, :, 19]])
    got = core_probability(q[:, :, :n], k[:, :, n:], lse[:, :, :n], core)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(out.double(), p @ v.double(), rtol=2e-2, atol=2e-2 if dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_cpu_both_attentions_are_the_same_bits_forward_and_backward(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v, weight = torch.randn(4, 2, 3, 84, 32).mul(2).to(dtype).unbind()
    found = []
    for kernel in (attention, lambda *qkv: attention_with_lse(*qkv)[0]):
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = kernel(*leaves)
        assert out.dtype == dtype
        found.append([out, *torch.autograd.grad((out.float() * weight.float()).sum(), leaves)])
        with torch.no_grad():
            assert torch.equal(kernel(q, k, v), out)
    assert all(torch.equal(plain, fused) for plain, fused in zip(*found, strict=True))


def test_log_sum_exp_in_blocks_is_the_kernels() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 84, 32).mul(2).unbind()
    expected = torch.logsumexp(q.double() @ k.double().transpose(-1, -2) / 32**0.5, -1)
    for lse in (log_sum_exp(q, k, rows=25), attention_with_lse(q, k, v)[1]):
        torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [attention, lambda *row: attention_with_lse(*row)[0]], ids=["plain", "with lse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_leaves_out_what_is_no_key_forward_and_backward(kernel: Callable, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (tensor.to(dtype).requires_grad_() for tensor in torch.randn(3, 2, 3, 84, 32).mul(2).unbind())
    mask = torch.ones(2, 84, dtype=torch.bool)
    mask[0, 30:41] = mask[1, :7] = False
    out = kernel(q, k, v, mask)
    gradients = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    _, lse = attention_with_lse(q, k, v, mask)
    for i in range(2):
        row = [tensor[i : i + 1, :, mask[i]].detach() for tensor in (k, v)]
        logits = q[i : i + 1].double() @ row[0].double().transpose(-1, -2) * 32**-0.5
        rounding = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(out[i : i + 1].double(), logits.softmax(-1) @ row[1].double(), **rounding)
        for found in (lse[i], log_sum_exp(q, k, mask)[i]):
            torch.testing.assert_close(found.double(), logits.logsumexp(-1)[0], rtol=1e-5, atol=1e-5)
        for gradient in gradients[1:]:
            assert not gradient[i, :, ~mask[i]].any() and gradient[i, :, mask[i]].any()


def test_masked_both_attentions_are_the_same_bits() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 84, 32).mul(2).unbind()
    mask = torch.arange(84) < torch.tensor([84, 50])[:, None]
    assert torch.equal(attention(q, k, v, mask), attention_with_lse(q, k, v, mask)[0])


def test_a_recorder_of_some_rows_has_their_columns_and_no_maps() -> None:
    whole = Recorder(CoreColumns(torch.tensor([[2], [3], [17]]), torch.ones(3, 1)), (1, 3), (0,))
    whole.maps[1] = torch.zeros(3, 4)
    part = whole.of(torch.tensor([2, 0]))
    assert part.columns.index_BK.tolist() == [[17], [2]] and (part.blocks, part.heads) == ((1, 3), (0,))
    assert part.maps == {} and set(whole.maps) == {1}


def test_unknown_blocks_and_heads_are_refused() -> None:
    check_recordable((0, 3), (3,), (4, 4))
    with pytest.raises(ValueError, match=r"allocation\.blocks: \[4\] not among this model's blocks 0\.\.3"):
        check_recordable((4,), None, (4, 4))
    with pytest.raises(ValueError, match=r"allocation\.heads"):
        check_recordable((0,), (4,), (4, 4))
