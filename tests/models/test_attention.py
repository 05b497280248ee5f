"""The recorded attention against an explicit float64 softmax, and the model with and without it."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0

from star.models.attention import (
    CoreColumns,
    JointAttention,
    core_probability,
    fused_attention,
    image_attention,
    install,
    log_sum_exp,
)
from star.pretraining import base


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
    assert recorder.raw_maps().shape == (3, 2, 64)
    assert set(recorder.maps) == {1, 3}


def test_only_the_last_samples_of_a_guided_batch_are_recorded() -> None:
    torch.manual_seed(0)
    model = base.transformer().eval()
    recorder = install(model, [2])
    inputs = _inputs(4)
    core = CoreColumns(torch.tensor([[5], [6]]), torch.ones(2, 1))
    with torch.no_grad(), recorder.recording(core):
        model(**inputs)
    guided = recorder.raw_maps()
    with torch.no_grad(), recorder.recording(core):
        model(**{k: v[2:] for k, v in inputs.items()})
    torch.testing.assert_close(guided, recorder.raw_maps(), rtol=1e-5, atol=1e-7)


def test_log_sum_exp_in_blocks_is_the_kernels() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 84, 32).mul(2).unbind()
    expected = torch.logsumexp(q.double() @ k.double().transpose(-1, -2) / 32**0.5, -1)
    for lse in (log_sum_exp(q, k, rows=25), fused_attention(q, k, v)[1]):
        torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-6)


def test_chosen_heads_alone_make_the_map() -> None:
    torch.manual_seed(0)
    model, inputs = base.transformer().eval(), _inputs()
    core = CoreColumns(torch.tensor([[2], [3], [17]]), torch.ones(3, 1))
    found = {}
    for heads in (None, [0], [1], [2], [3], [1, 3]):
        recorder = install(model, [2], heads)
        with torch.no_grad(), recorder.recording(core):
            model(**inputs)
        found[str(heads)] = recorder.raw_maps()
    mean = torch.stack([found[f"[{h}]"] for h in range(4)]).mean(0)
    torch.testing.assert_close(found["None"], mean)
    torch.testing.assert_close(found["[1, 3]"], (found["[1]"] + found["[3]"]) / 2)
    assert not torch.allclose(found["[1]"], found["[3]"])


@pytest.mark.parametrize("compiled", [False, True])
def test_recording_works_with_gradient_checkpointing_and_compilation(compiled: bool) -> None:
    torch.manual_seed(0)
    model, inputs = base.transformer(), _inputs()
    core = CoreColumns(torch.tensor([[2], [3], [17]]), torch.ones(3, 1))
    recorder = install(model, [1, 3])
    with torch.no_grad(), recorder.recording(core):
        expected = model(**inputs).sample
    maps = recorder.raw_maps()
    recorder.maps = {}
    model.enable_gradient_checkpointing()
    model.train()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    with recorder.recording(core):
        out = run(**inputs).sample
    torch.testing.assert_close(recorder.raw_maps(), maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert not recorder.raw_maps().requires_grad
    out.square().mean().backward()  # runs every block again, outside `recording`
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.disable_gradient_checkpointing()
    model(**inputs).sample.square().mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


SD35_MEDIUM = {  # transformer/config.json of stabilityai/stable-diffusion-3.5-medium
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}


def test_on_the_true_sd35_medium_every_attention_runs_the_fused_kernel() -> None:
    with torch.device("meta"):
        model = SD3Transformer2DModel(**SD35_MEDIUM)
    assert 2.2e9 < sum(p.numel() for p in model.parameters()) < 2.6e9
    recorder = install(model, [7, 8, 9, 10, 5])
    processors = model.attn_processors
    ours = {name for name, processor in processors.items() if isinstance(processor, JointAttention)}
    assert ours == {f"transformer_blocks.{i}.attn.processor" for i in range(24)}
    others = {name: processor for name, processor in processors.items() if name not in ours}
    assert others == {f"transformer_blocks.{i}.attn2.processor": image_attention for i in range(13)}
    assert recorder.blocks == (7, 8, 9, 10, 5)
    with pytest.raises(ValueError, match=r"allocation\.blocks: \[24\] not among this model's blocks 0\.\.23"):
        install(model, [24])


def test_sd35_mediums_blocks_at_reduced_depth_record_the_explicit_softmax() -> None:
    """True widths, heads and dual attention; two blocks, random weights, 64 image tokens, diffusers' own projections."""
    torch.manual_seed(0)
    config = SD35_MEDIUM | {"num_layers": 2, "dual_attention_layers": [0]}
    model = SD3Transformer2DModel(**config).eval()
    inputs = {
        "hidden_states": torch.randn(1, 16, 16, 16),
        "encoder_hidden_states": torch.randn(1, 20, 4096),
        "pooled_projections": torch.randn(1, 2048),
        "timestep": torch.tensor([500.0]),
    }
    seen = {}

    def explicit(attn: torch.nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object) -> tuple:
        """The whole joint softmax in float64, kept, and diffusers' output."""

        def heads(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
            return norm(x.view(1, -1, 24, 64).transpose(1, 2))

        q = torch.cat(
            [heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)], 2
        )
        k = torch.cat(
            [heads(attn.to_k(hidden_states), attn.norm_k), heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)], 2
        )
        seen[len(seen)] = _explicit(q, k)[0, :, :64, 64:].mean(0)
        return JointAttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)

    for block in model.transformer_blocks:
        block.attn.processor = explicit
    with torch.no_grad():
        theirs = model(**inputs).sample
        recorder = install(model, [0, 1])
        with recorder.recording(CoreColumns(torch.tensor([[4, 11]]), torch.tensor([[0.5, 0.5]]))):
            ours = model(**inputs).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for block in (0, 1):
        expected = seen[block][:, [4, 11]].mean(-1)
        torch.testing.assert_close(recorder.maps[block][0].double(), expected, rtol=1e-4, atol=1e-7)


def test_unknown_blocks_and_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"allocation\.blocks"):
        install(base.transformer(), [4])
    with pytest.raises(ValueError, match=r"allocation\.heads"):
        install(base.transformer(), [0], [4])
