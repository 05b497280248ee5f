"""The image folder: GenEval's layout, equal noise, resume, refusals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from trainings import with_images

from star import config as configuration
from star.allocation.columns import core_columns
from star.allocation.maps import allocation_map
from star.allocation.sources import Observation
from star.errors import InputError
from star.flow.sampler import Trajectory, denoise
from star.flow.schedule import make_schedule
from star.flow.seeding import noise
from star.models.attention import Recorder
from star.models.door import FlowModel, load_model
from star.prompts import make
from star.prompts.record import Prompt, read
from star.sampling import gallery
from star.sampling.gallery import draw
from star.sampling.sample import sample
from star.worlds.miniature.regions import region

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(random_base: Path) -> configuration.Config:
    return configuration.load(
        ROOT / "config/miniature.yaml",
        [f"policy.model={random_base}", "policy.precision=float32", "evaluation.steps=2", "evaluation.batch=4"],
    )


@pytest.fixture
def records(tmp_path: Path, config: configuration.Config) -> Path:
    everything = tmp_path / "all.jsonl"
    make.write(config, "shapes", "test", everything)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in everything.read_text().splitlines()[:3]))
    return few


def _pictures(out: Path) -> dict[str, np.ndarray]:
    return {str(f.relative_to(out)): np.asarray(Image.open(f)) for f in sorted(out.glob("*/samples/*.png"))}


def test_layout_metadata_and_png_texts(config: configuration.Config, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sample(with_images(config, 2), records, out, seed=7) == 6
    wanted = read(records)
    assert list(_pictures(out)) == [f"{n:05d}/samples/{k:04d}.png" for n in range(3) for k in range(2)]
    for n, record in enumerate(wanted):
        (line,) = (out / f"{n:05d}/metadata.jsonl").read_text().splitlines()
        metadata = json.loads(line)
        assert {k: metadata[k] for k in ("tag", "include", "prompt")} == {
            k: record.metadata.get(k, record.text) for k in ("tag", "include", "prompt")
        }
    texts = Image.open(out / "00001/samples/0001.png").text
    assert texts == {"seed": "7/1", "prompt_id": wanted[1].id, "checkpoint": "base"}
    assert (out / "prompts.jsonl").read_bytes() == records.read_bytes()


def test_resume_and_batch_split_change_no_picture(config: configuration.Config, records: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    sample(with_images(config, 2), records, a, seed=0)
    sample(with_images(config, 2), records, b, seed=0)
    (b / "00001/samples/0000.png").unlink()
    assert sample(with_images(config, 2), records, b, seed=0) == 1
    for name, picture in _pictures(a).items():
        assert np.abs(picture.astype(int) - _pictures(b)[name]).max() <= 1, name


def test_other_settings_are_refused_or_start_over(config: configuration.Config, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample(with_images(config, 1), records, out, seed=0)
    before = _pictures(out)
    with pytest.raises(InputError, match="other weights, prompts or settings"):
        sample(with_images(config, 1), records, out, seed=1)
    assert sample(with_images(config, 1), records, out, seed=1, start_over=True) == 3
    after = _pictures(out)
    assert not np.array_equal(before["00000/samples/0000.png"], after["00000/samples/0000.png"])


def test_gallery_draws_one_row_a_prompt(
    config: configuration.Config, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration.run_settings(config, "shapes", "star")
    seen = []

    def averaged(_: object, observed: Observation, *more: object) -> torch.Tensor:
        seen.append(observed.raw_BTOhw)
        return observed.raw_BTOhw.float().mean(2).repeat(1, 1, 2, 2)

    monkeypatch.setattr(gallery, "allocation_map", averaged)
    picture = draw(settings, records, tmp_path / "maps", None, 2, seed=0)
    assert Image.open(picture).size[0] > 800
    columns = settings.rollout.steps  # all steps but the last, whose noise is gone, and the picture
    assert (tmp_path / "maps/maps.svg").read_text().count("<image") == 2 * columns + 1  # and the colour bar
    assert seen[0].shape == (2, settings.rollout.steps, len(settings.allocation.blocks), 8, 8)
    with pytest.raises(InputError, match=r"allocation\.blocks"):
        no_blocks = configuration.load(ROOT / "config/miniature.yaml", ["allocation.blocks=[]"])
        draw(configuration.run_settings(no_blocks, "shapes", "flow_grpo"), records, tmp_path, None, 2, seed=0)


def _recorded(model: FlowModel, prompts: list[Prompt], blocks: list[int], steps: int) -> Trajectory:
    """The ODE samples of `star sample`, with some blocks recorded."""
    model.watch(blocks)
    starts = torch.stack([noise((1, *model.geometry.latents), "test", 0, prompt.id, 0) for prompt in prompts])
    recorder = Recorder(core_columns(model, prompts), tuple(blocks))
    text, schedule = model.encode([prompt.text for prompt in prompts]), make_schedule(model.sigmas(steps), noise_level=0.0)
    return denoise(model, starts, text=text, schedule=schedule, recorder=recorder)


def test_maps_are_measured_for_every_prompt(config: configuration.Config, records: Path, tmp_path: Path) -> None:
    uniform = configuration.run_settings(config, "shapes", "star").model_copy(
        update={"allocation": config.allocation.model_copy(update={"source": "uniform"})}
    )
    flat = gallery.measure_prompts(uniform, records, tmp_path / "flat", None, seed=0)
    assert len(flat) == 3 * uniform.rollout.steps and flat[["entropy", "effective_area"]].to_numpy() == pytest.approx(1.0)
    settings = configuration.run_settings(config, "shapes", "star")
    table = gallery.measure_prompts(settings, records, tmp_path, None, seed=0)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "map_statistics.csv"), table, check_dtype=False)
    lines, steps = read(records), settings.rollout.steps
    raw = _recorded(load_model(settings.policy), lines, settings.allocation.blocks, steps).raw_BTOhw
    seen = Observation(3, steps, (8, 8), patch=2, raw_BTOhw=raw)
    weights = allocation_map(settings.allocation, seen, range(steps))[1, 3].flatten().double().numpy()
    row = table[(table["prompt_id"] == lines[1].id) & (table["step"] == 3)].iloc[0]
    assert row["entropy"] == pytest.approx(stats.entropy(weights) / np.log(len(weights)), rel=1e-4)
    assert row["effective_area"] == pytest.approx(weights.sum() ** 2 / len(weights) / (weights**2).sum(), rel=1e-3)


def test_localisation_is_measured_for_every_block_and_step(config: configuration.Config, records: Path, tmp_path: Path) -> None:
    settings = configuration.run_settings(config, "shapes", "star")
    table = gallery.measure(settings, records, tmp_path, None, seed=0)
    assert len(table) == 4 * settings.rollout.steps and set(table["block"]) == {0, 1, 2, 3}
    written = pd.read_csv(tmp_path / "localisation.csv")
    pd.testing.assert_frame_equal(written, table)
    # by hand, for one block: the same picture, its region, its raw attention
    model = load_model(settings.policy)
    trajectory = _recorded(model, read(records), [2], settings.rollout.steps)
    gains = []
    for picture, raw in zip(model.decode(trajectory.latents_BSCHW[:, -1]), trajectory.raw_BTOhw[:, 3, 0].double(), strict=True):
        inside = region(picture).reshape(8, 8, 8, 8).mean((1, 3))
        if inside.any():
            gains.append((raw.numpy() * inside).sum() / raw.sum().item() / inside.mean())
    row = table[(table["block"] == 2) & (table["step"] == 3)].iloc[0]
    assert row["n"] == len(gains) > 0
    assert row["gain"] == pytest.approx(np.mean(gains), rel=1e-3)
