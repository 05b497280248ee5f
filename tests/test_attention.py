"""The recorded attention against an explicit float64 softmax, and the model with and without it."""

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0

from star.allocation.attention import CoreColumns, core_probability, fused_attention, install
from star.miniature import base


def _explicit(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
def test_core_probability_equals_an_explicit_softmax(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    n, text = 64, 20
    q, k, v = (torch.randn(2, 3, n + text, 32).mul(2).to(dtype) for _ in range(3))
    out, lse = fused_attention(q, k, v)
    p = _explicit(q, k)
    core = CoreColumns(torch.tensor([[3, 7, 0], [19, 0, 0]]), torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]))
    columns = p[:, :, :n, n:].mean(1)
    expected = torch.stack([0.25 * columns[0, :, 3] + 0.75 * columns[0, :, 7], columns[1, :, 19]])
    got = core_probability(q[:, :, :n], k[:, :, n:], lse[:, :, :n], core)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(out.double(), p @ v.double(), rtol=2e-2, atol=2e-2 if dtype != torch.float32 else 1e-5)


def _inputs(batch: int = 3) -> dict:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 8, 16, 16),
        "encoder_hidden_states": torch.randn(batch, 32, 128),
        "pooled_projections": torch.randn(batch, 128),
        "timestep": torch.full((batch,), 500.0),
    }


def test_output_is_that_of_diffusers_own_processor_and_recording_changes_no_bit() -> None:
    torch.manual_seed(0)
    model = base.transformer().eval()
    for block in model.transformer_blocks:
        assert isinstance(block.attn.processor, JointAttnProcessor2_0)
    inputs = _inputs()
    with torch.no_grad():
        theirs = model(**inputs).sample
        recorder = install(model, [1, 3])
        ours = model(**inputs).sample
        core = CoreColumns(torch.tensor([[2], [3], [17]]), torch.ones(3, 1))
        with recorder.recording(core):
            recorded = model(**inputs).sample
    assert torch.equal(ours, recorded)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert recorder.raw_map().shape == (3, 64)
    assert set(recorder.maps) == {1, 3}


def test_only_the_last_samples_of_a_guided_batch_are_recorded() -> None:
    torch.manual_seed(0)
    model = base.transformer().eval()
    recorder = install(model, [2])
    inputs = _inputs(4)
    core = CoreColumns(torch.tensor([[5], [6]]), torch.ones(2, 1))
    with torch.no_grad(), recorder.recording(core):
        model(**inputs)
    guided = recorder.raw_map()
    with torch.no_grad(), recorder.recording(core):
        model(**{k: v[2:] for k, v in inputs.items()})
    torch.testing.assert_close(guided, recorder.raw_map(), rtol=1e-5, atol=1e-7)


def test_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"allocation\.blocks"):
        install(base.transformer(), [4])
