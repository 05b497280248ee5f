"""The policy against diffusers' own pipeline, its adapter, and its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from records import asked

from star.config import Allocation, Lora, Optimizer, PolicySettings, Training, load, run_settings
from star.errors import InputError
from star.flow.schedule import make_schedule
from star.hub import weights
from star.models.sd3 import Generator, pick_device
from star.prompts.record import Span
from star.training.checkpoint import key_of, save
from star.training.learner import Ema, Learner
from star.training.processes import Processes

RECORDS = [
    asked("a photo of a red circle", core=(Span("circle", 17, 23, "object"),)),
    asked('a sign that says "KAT"'),
]


def _policy(folder: Path, **changes: object) -> PolicySettings:
    settings = {"model": str(folder), "resolution": 64, "guidance": 2.5, "max_sequence_length": 16, "device": "cpu"}
    return PolicySettings(**{**settings, "lora": Lora(rank=4, alpha=8)} | changes)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_ode_sampling_is_that_of_diffusers(random_base: Path, guidance: float) -> None:
    generator = Generator(_policy(random_base, guidance=guidance))
    noise = torch.randn(2, 1, *generator.latent_shape(), generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(generator.pipe.scheduler, 4, 0.0)
    ours = generator.sample(noise, generator.encode(RECORDS), generator.empty_prompt(), schedule)
    pictures = generator.decode(ours.latents_BSCHW[:, -1])

    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        [r.text for r in RECORDS],
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=16,
        latents=noise[:, 0],
        output_type="np",
    ).images
    np.testing.assert_allclose(np.stack(pictures) / 255, theirs, atol=0.5 / 255 + 1e-4)


def test_auto_is_bfloat16_where_the_processor_has_it_and_a_run_is_not_continued_in_the_other(
    random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, digests = run_settings(load("config/miniature.yaml"), "preference", "star"), set()
    for found, precision in (
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "amx_bf16": False}, torch.float32),
        ({"neon": True, "bf16": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        policy = _policy(random_base, precision="auto")
        generator = Generator(policy)
        assert {p.dtype for p in generator.transformer.parameters()} == {generator.dtype} == {precision}
        digests.add(key_of(settings.model_copy(update={"policy": policy})))
    assert len(digests) == 2


def test_a_process_without_a_gpu_of_its_own_is_refused_and_one_for_the_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: pytest.fail(f"device {number} of one"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match=r"compute\.processes: process 1 of this machine finds 1 GPU\(s\).*lower it"):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu" and Processes().rank == 0 and weights.resolve("cpu") == "cpu"


def test_a_saved_adapter_loads_in_diffusers_with_its_scale(random_base: Path, tmp_path: Path) -> None:
    generator = Generator(_policy(random_base, guidance=1.0))
    learner = Learner(generator, Optimizer(), Training(epochs=1), seed=0)
    with torch.no_grad():
        for i, p in enumerate(learner.parameters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    learner.ema = Ema(learner.parameters, 0.9, 1)
    save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    x, prompt = torch.randn(2, *generator.latent_shape()), generator.encode(RECORDS)
    with torch.no_grad():
        expected = generator.velocity(x, 0.5, prompt, None)
        with generator.reference():
            base = generator.velocity(x, 0.5, prompt, None)
        fresh = Generator(_policy(random_base, guidance=1.0))
        fresh.pipe.load_lora_weights(tmp_path / "epoch0001" / "adapter")  # the user's line
        got = fresh.velocity(x, 0.5, prompt, None)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "no/such/folder"}, "no folder"),
        ({"model": "some/repository"}, "policy.revision"),
        ({"device": "cuda"}, "policy.device"),
    ],
)
def test_refusals_name_key_and_remedy(random_base: Path, changes: dict, words: str) -> None:
    assert not torch.cuda.is_available()
    with pytest.raises(InputError, match=words):
        Generator(_policy(random_base, **changes))


def test_a_folder_that_is_no_pipeline_and_a_folder_that_is_no_adapter(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json"):
        Generator(_policy(tmp_path))
    with pytest.raises(InputError, match=r"pytorch_lora_weights\.safetensors"):
        Generator(_policy(random_base)).load_adapter(tmp_path)
    with pytest.raises(InputError, match=r"allocation\.blocks"):
        Generator(_policy(random_base), Allocation(blocks=[9]))
