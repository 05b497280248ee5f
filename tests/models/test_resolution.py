"""Pictures that are no squares, and tests at another size than training's: against diffusers' pipeline and scheduler."""

import json
from pathlib import Path

import numpy as np
import policies
import pytest
import torch
import trainings
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from PIL import Image
from records import asked

from star import config as configuration
from star.allocation.columns import core_columns
from star.config.key import sampling_key, training_key
from star.errors import InputError
from star.flow.sampler import denoise
from star.flow.schedule import make_schedule
from star.models.attention import Recorder
from star.models.door import at
from star.prompts import make
from star.sampling.sample import sample
from star.training import train as trainer

PROMPTS = ["a photo of a red circle", "a photo of a blue star"]


@pytest.fixture(scope="module")
def shifting_base(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random base with a scheduler that shifts its noise levels by the number of tokens, by numbers of its own."""
    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=128, base_shift=0.3, max_shift=1.7
    )
    folder = tmp_path_factory.mktemp("shifting-base")
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_a_picture_that_is_no_square_is_that_of_diffusers(shifting_base: Path, size: tuple[int, int]) -> None:
    """With the positions of that grid and the noise levels of that number of tokens."""
    model = policies.model(shifting_base, resolution=size, guidance=2.0)
    assert model.geometry.latents == (8, size[0] // 4, size[1] // 4)
    start = torch.randn(2, 1, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(model.sigmas(3), noise_level=0.0)
    pictures = model.decode(denoise(model, start, text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1])
    assert [picture.shape for picture in pictures] == [(*size, 3)] * 2

    pipe = StableDiffusion3Pipeline.from_pretrained(shifting_base)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "max_sequence_length": 16, "output_type": "np"}
    theirs = pipe(PROMPTS, height=size[0], width=size[1], latents=start[:, 0], **options).images
    np.testing.assert_allclose(np.stack(pictures) / 255, theirs, atol=0.5 / 255 + 1e-4)


def test_maps_lie_on_the_grid_of_that_picture(random_base: Path) -> None:
    """Token 4 r + c of a picture of 8 x 4 tokens is the patch in row r and column c, as the map says."""
    model = policies.model(random_base, resolution=(64, 32))
    model.watch([1])
    columns = core_columns(model, [asked(PROMPTS[0])] * 2, "all")
    start = torch.randn(2, 1, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
    schedule, recorder = make_schedule(model.sigmas(2), noise_level=0.0), Recorder(columns, (1,))
    drawn = denoise(model, start, text=model.encode(PROMPTS[:1] * 2), schedule=schedule, recorder=recorder)
    assert drawn.raw_BTOhw.shape == (2, 2, 1, 8, 4) and model.geometry.tokens == (8, 4)

    x_BCHW = torch.zeros(1, *model.geometry.latents)
    x_BCHW[:, :, 2 * 5 : 2 * 5 + 2, 2 * 1 : 2 * 1 + 2] = 1.0
    embed = model.transformer.pos_embed
    differs = (embed(x_BCHW) != embed(torch.zeros_like(x_BCHW))).any(-1)[0]
    grid = differs.unflatten(0, model.geometry.tokens)
    assert grid.nonzero().tolist() == [[5, 1]]


def test_another_size_has_the_noise_levels_of_its_own_number_of_tokens(shifting_base: Path) -> None:
    model = policies.model(shifting_base)
    wide = at(model, policies.settings(shifting_base, resolution=(32, 64)))
    assert at(model, policies.settings(shifting_base)) is model
    assert wide.transformer is model.transformer and (model.geometry.tokens, wide.geometry.tokens) == ((8, 8), (4, 8))
    for sized, tokens in ((model, 64), (wide, 32)):
        theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(shifting_base, subfolder="scheduler")
        theirs.set_timesteps(5, mu=calculate_shift(tokens, 16, 128, 0.3, 1.7))
        torch.testing.assert_close(sized.sigmas(5), theirs.sigmas.float(), rtol=0, atol=0)
    assert not torch.equal(wide.sigmas(5), model.sigmas(5))


@pytest.mark.parametrize(("size", "said"), [((64, 36), "64 x 36 is not in multiples of 8"), ((64, 128), "64 pixels a side")])
def test_a_size_that_the_base_cannot_draw_is_refused(random_base: Path, size: tuple[int, int], said: str) -> None:
    with pytest.raises(InputError, match=f"policy.resolution: .*{said}"):
        policies.model(random_base, resolution=size)


def test_trained_at_one_size_and_tested_at_another(random_base: Path, tmp_path: Path) -> None:
    """The training's fixed pictures and `star sample` have the evaluation's size, its maps the training's."""
    sizes = ("policy.resolution=[64, 32]", "evaluation={resolution: [32, 48], steps: 2, images_per_prompt: 1}")
    more = (*sizes, "training.epochs=1", "tracking.prompts=1", "tracking.every=1")
    config = trainings.config(random_base, *more)
    settings = configuration.run_settings(config, "preference", "star")
    prompts = make.records(config, "preference", "train")
    run = tmp_path / "run"
    trainer.train(settings, 0, prompts, run, watched=trainer.Watched(prompts[:1]))
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["map_entropy"] > 0
    with Image.open(run / "pictures/epoch0001.png") as grid:
        assert grid.size == (48, 2 * 32)

    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps(prompt.as_dict()) + "\n" for prompt in prompts[:2]))
    assert sample(config, lines, tmp_path / "samples", adapter=run / "checkpoints/epoch0001/adapter") == 2
    for picture in (tmp_path / "samples").rglob("*.png"):
        with Image.open(picture) as opened:
            assert opened.size == (48, 32)


def test_a_square_has_the_key_of_its_number_and_the_evaluation_that_of_its_own_size() -> None:
    def keys(*more: str) -> tuple[str, str]:
        config = configuration.load(trainings.ROOT / "config/miniature.yaml", more)
        settings = configuration.run_settings(config, "shapes", "star")
        return training_key(settings), sampling_key(settings)

    plain, wide = keys(), keys("policy.resolution=[32, 64]")
    assert keys("policy.resolution=[64, 64]") == keys("evaluation.resolution=64") == plain
    assert not set(plain) & set(wide)
    tested = keys("evaluation.resolution=[32, 64]")
    assert tested == (plain[0], wide[1])  # what is tested at that size does not care where it was trained


@pytest.mark.parametrize("value", ["abc", "[1, 2, 3]", "0", "[64, -2]", "[]", "1.5", "[64, true]"])
def test_what_is_no_size_is_refused(value: str) -> None:
    for key in ("policy.resolution", "evaluation.resolution"):
        with pytest.raises(InputError, match=rf"{key}: .*(neither a number of pixels nor \[height, width\]|is a switch)"):
            configuration.load(trainings.ROOT / "config/miniature.yaml", [f"{key}={value}"])
