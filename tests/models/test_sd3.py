"""Stable Diffusion 3 behind the door against diffusers' own pipeline and an explicit softmax, recorded and not."""

import functools
from pathlib import Path

import numpy as np
import policies
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from star.allocation.columns import CoreColumns
from star.config import Compute
from star.errors import InputError
from star.flow.sampler import denoise
from star.flow.schedule import log_prob, make_schedule, step_mean
from star.models import attention
from star.models.attention import Recorder
from star.models.family import EncodedText
from star.models.sd3 import SD3, SD3Attention, image_attention
from star.pretraining import base

PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']
CORE = CoreColumns(torch.tensor([[2], [3], [17]]), torch.ones(3, 1))


@pytest.fixture(scope="module")
def parts() -> dict:
    """Everything of a pipeline but the transformer."""
    components = base.pipeline(seed=1).components
    return {
        name: part for name, part in components.items() if name not in ("transformer", "image_encoder", "feature_extractor")
    }


def _around(transformer: SD3Transformer2DModel, parts: dict, compute: Compute | None = None, guidance: float = 1.0) -> SD3:
    """A model of this transformer."""
    settings = policies.settings("none", guidance=guidance, precision="float32")
    return SD3(StableDiffusion3Pipeline(transformer=transformer, **parts), settings, compute)


def _transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return base.transformer().eval()


def _inputs(batch: int = 3) -> tuple[torch.Tensor, float, EncodedText]:
    torch.manual_seed(1)
    x_BCHW, columns_BLE, pooled_BP = torch.randn(batch, 8, 16, 16), torch.randn(batch, 32, 128), torch.randn(batch, 128)
    return x_BCHW, 0.5, EncodedText(columns_BLE, pooled_BP)


def _theirs(transformer: SD3Transformer2DModel, x_BCHW: torch.Tensor, sigma: float, text: EncodedText) -> torch.Tensor:
    """What diffusers' transformer says by itself."""
    return transformer(
        hidden_states=x_BCHW,
        encoder_hidden_states=text.columns_BLE,
        pooled_projections=text.pooled_BP,
        timestep=torch.full((len(x_BCHW),), 1000 * sigma),
    ).sample


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_ode_sampling_is_that_of_diffusers(random_base: Path, guidance: float) -> None:
    model = policies.model(random_base, guidance=guidance)
    noise = torch.randn(2, 1, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(model.sigmas(4), noise_level=0.0)
    ours = denoise(model, noise, text=model.encode(PROMPTS), schedule=schedule)
    pictures = model.decode(ours.latents_BSCHW[:, -1])

    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=16,
        latents=noise[:, 0],
        output_type="np",
    ).images
    np.testing.assert_allclose(np.stack(pictures) / 255, theirs, atol=0.5 / 255 + 1e-4)


def test_geometry_passes_and_example_text_are_the_true_ones(random_base: Path) -> None:
    for guidance, passes in ((1.0, 1), (2.5, 2)):
        model = policies.model(random_base, guidance=guidance)
        assert (model.geometry.latents, model.geometry.tokens, model.passes) == ((8, 16, 16), (8, 8), passes)
        true, example = model.encode(PROMPTS), model.example_text(2)
        for ours, theirs in ((example, true), (example.negative, true.negative)):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert (ours.columns_BLE.shape, ours.pooled_BP.shape) == (theirs.columns_BLE.shape, theirs.pooled_BP.shape)
        assert (true.negative is None) == (guidance == 1.0)


def test_the_negative_prompt_is_the_encoded_empty_one(random_base: Path) -> None:
    model, plain = policies.model(random_base, guidance=2.5), policies.model(random_base)
    text, empty = model.encode(PROMPTS), plain.encode([""])
    assert torch.equal(text.negative.columns_BLE, empty.columns_BLE) and torch.equal(text.negative.pooled_BP, empty.pooled_BP)
    assert text[torch.tensor([1, 0])].negative is text.negative
    assert torch.equal(text[torch.tensor([1, 0])].columns_BLE[0], text.columns_BLE[1])


def test_output_is_that_of_diffusers_own_processor_and_recording_changes_no_bit(parts: dict) -> None:
    transformer, inputs = _transformer(), _inputs()
    for block in transformer.transformer_blocks:
        assert isinstance(block.attn.processor, JointAttnProcessor2_0)
    with torch.no_grad():
        theirs = _theirs(transformer, *inputs)
        model = _around(transformer, parts)
        model.watch([1, 3])
        ours = model.velocity(*inputs)
        recorder = Recorder(CORE, (1, 3))
        recorded = model.velocity(*inputs, recorder)
    assert torch.equal(ours, recorded)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert recorder.raw_maps().shape == (3, 2, 64)
    assert set(recorder.maps) == {1, 3}


def test_watched_blocks_run_the_kernel_with_log_sum_exp_and_others_the_default_with_equal_bits(
    parts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, ran = _around(_transformer(), parts), _inputs(), []
    for name in ("attention", "attention_with_lse"):
        kernel = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *qkv, name=name, kernel=kernel: ran.append(name) or kernel(*qkv))
    velocities = []
    for blocks in ((), (1, 3), (0, 1, 2, 3)):
        model.watch(blocks)
        for recorder in (None, Recorder(CORE, blocks)):
            with torch.no_grad():
                velocities.append(model.velocity(*inputs, recorder))
            assert ran == ["attention_with_lse" if i in blocks else "attention" for i in range(4)]
            ran.clear()
    assert all(torch.equal(velocities[0], v) for v in velocities)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_update_sees_the_log_probabilities_of_the_recorded_rollout_to_the_bit(
    random_base: Path, precision: str, guidance: float
) -> None:
    policy = policies.policy(random_base, precision=precision, guidance=guidance)
    model = policy.model
    model.watch([1, 3])
    text, schedule = model.encode(PROMPTS), make_schedule(model.sigmas(3), noise_level=0.7)
    noise = torch.randn(2, 4, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    seen = denoise(model, noise, text=text, schedule=schedule, recorder=Recorder(CORE[:2], (1, 3)))
    assert seen.raw_BTOhw.shape == (2, 3, 2, 8, 8)
    for t in range(3):
        x, x_next = seen.latents_BSCHW[:, t], seen.latents_BSCHW[:, t + 1]
        v = policy.velocity(x, schedule.sigma[t].item(), text)
        assert v.requires_grad
        new = log_prob(schedule, t, x_next, step_mean(schedule, t, x, v))
        assert torch.equal((new - seen.log_prob_BTHW[:, t]).exp(), torch.ones_like(new))


def test_only_the_conditional_half_of_a_guided_batch_is_recorded(parts: dict) -> None:
    model = _around(_transformer(), parts, guidance=2.5)
    model.watch([2])
    x, sigma, text = _inputs(2)
    other = _inputs(3)[2]
    guided, plain = Recorder(CORE[:2], (2,)), Recorder(CORE[:2], (2,))
    with torch.no_grad():
        model.velocity(x, sigma, EncodedText(text.columns_BLE, text.pooled_BP, negative=other[2:]), guided)
        model.velocity(x, sigma, text, plain)
    torch.testing.assert_close(guided.raw_maps(), plain.raw_maps(), rtol=1e-5, atol=1e-7)


def test_chosen_heads_alone_make_the_map(parts: dict) -> None:
    model, inputs = _around(_transformer(), parts), _inputs()
    found = {}
    for heads in (None, (0,), (1,), (2,), (3,), (1, 3)):
        model.watch([2], heads)
        recorder = Recorder(CORE, (2,), heads)
        with torch.no_grad():
            model.velocity(*inputs, recorder)
        found[heads] = recorder.raw_maps()
    mean = torch.stack([found[(h,)] for h in range(4)]).mean(0)
    torch.testing.assert_close(found[None], mean)
    torch.testing.assert_close(found[1, 3], (found[(1,)] + found[(3,)]) / 2)
    assert not torch.allclose(found[(1,)], found[(3,)])


@pytest.mark.parametrize("compiled", [False, True])
def test_recording_works_with_gradient_checkpointing_and_compilation(
    parts: dict, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, inputs = _transformer(), _inputs()
    plain, recorder = _around(transformer, parts), Recorder(CORE, (1, 3))
    plain.watch([1, 3])
    with torch.no_grad():
        expected = plain.velocity(*inputs, recorder)
    maps = recorder.raw_maps()

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = _around(transformer, parts, Compute(gradient_checkpointing=True, compile=compiled))
    model.watch([1, 3])
    transformer.requires_grad_(True)
    recorder = Recorder(CORE, (1, 3))
    out = model.velocity(*inputs, recorder)
    torch.testing.assert_close(recorder.raw_maps(), maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert not recorder.raw_maps().requires_grad
    recorder.maps.clear()
    out.square().mean().backward()  # runs every block again, outside of `velocity`
    assert recorder.maps == {}
    gradients = {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    transformer.disable_gradient_checkpointing()
    model.velocity(*inputs).square().mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, transformer.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


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


def test_on_the_true_sd35_medium_every_attention_runs_our_kernels(parts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**SD35_MEDIUM)
    monkeypatch.setattr(transformer, "to", lambda device: transformer)  # there is nothing to move
    assert 2.2e9 < sum(p.numel() for p in transformer.parameters()) < 2.6e9
    model = _around(transformer, parts)
    model.watch([7, 8, 9, 10, 5])
    processors = transformer.attn_processors
    ours = {name: p for name, p in processors.items() if isinstance(p, SD3Attention)}
    recorded = {name: p.watched[0] for name, p in ours.items() if p.watched}
    assert recorded == {f"transformer_blocks.{i}.attn.processor": i for i in (7, 8, 9, 10, 5)}
    joint = set(ours) - set(recorded)
    assert joint == {f"transformer_blocks.{i}.attn.processor" for i in range(24)} - set(recorded)
    others = {name: p for name, p in processors.items() if name not in joint | set(recorded)}
    assert others == {f"transformer_blocks.{i}.attn2.processor": image_attention for i in range(13)}
    with pytest.raises(InputError, match=r"allocation\.blocks: \[24\] not among this model's blocks 0\.\.23"):
        model.watch([24])
    names = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = {target: sum(name.endswith(f".{target}") for name in names) for target in SD3.lora_targets}
    assert adapted == {target: 23 if target == "attn.to_add_out" else 24 for target in SD3.lora_targets}  # the last has no text


def test_sd35_mediums_blocks_at_reduced_depth_record_the_explicit_softmax(parts: dict) -> None:
    """True widths, heads and dual attention; two blocks, random weights, 64 image tokens, diffusers' own projections."""
    torch.manual_seed(0)
    config = SD35_MEDIUM | {"num_layers": 2, "dual_attention_layers": [0]}
    transformer = SD3Transformer2DModel(**config).eval()
    inputs = torch.randn(1, 16, 16, 16), 0.5, EncodedText(torch.randn(1, 20, 4096), torch.randn(1, 2048))
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
        p = (q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        seen[len(seen)] = p[0, :, :64, 64:].mean(0)
        return JointAttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)

    for block in transformer.transformer_blocks:
        block.attn.processor = explicit
    with torch.no_grad():
        theirs = _theirs(transformer, *inputs)
        model = _around(transformer, parts)
        model.watch([0, 1])
        recorder = Recorder(CoreColumns(torch.tensor([[4, 11]]), torch.tensor([[0.5, 0.5]])), (0, 1))
        ours = model.velocity(*inputs, recorder)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for block in (0, 1):
        expected = seen[block][:, [4, 11]].mean(-1)
        torch.testing.assert_close(recorder.maps[block][0].double(), expected, rtol=1e-4, atol=1e-7)


def test_unknown_blocks_and_heads_are_refused(parts: dict) -> None:
    model = _around(_transformer(), parts)
    with pytest.raises(InputError, match=r"allocation\.blocks: \[4\] not among this model's blocks 0\.\.3"):
        model.watch([4])
    with pytest.raises(InputError, match=r"allocation\.heads"):
        model.watch([0], [4])
