"""Denoising against the equations of its steps: what is kept, what a recorder gets, and rows that start alike."""

from pathlib import Path

import numpy as np
import policies
import pytest
import torch

from star.allocation.columns import CoreColumns
from star.flow.sampler import denoise
from star.flow.schedule import log_prob, make_schedule, step_mean
from star.models.attention import Recorder
from star.models.door import FlowModel

PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']


@pytest.fixture(scope="module")
def model(random_base: Path) -> FlowModel:
    loaded = policies.model(random_base)
    loaded.watch([1, 2])
    return loaded


def _noise(model: FlowModel, steps: int) -> torch.Tensor:
    return torch.randn(2, steps + 1, *model.geometry.latents, generator=torch.Generator().manual_seed(0))


def test_means_are_those_of_the_steps(model: FlowModel) -> None:
    schedule, noise = make_schedule(model.sigmas(4), noise_level=0.7, noisy=range(1, 3)), _noise(model, 4)
    text = model.encode(PROMPTS)
    kept = denoise(model, noise, text=text, schedule=schedule)
    assert kept.raw_BTOhw is None
    assert kept.mean_BTCHW.shape == (2, 4, *model.geometry.latents)
    for t in range(4):
        x, x_next, mean = kept.latents_BSCHW[:, t], kept.latents_BSCHW[:, t + 1], kept.mean_BTCHW[:, t]
        with torch.no_grad():
            assert torch.equal(mean, step_mean(schedule, t, x, model.velocity(x, schedule.sigma[t].item(), text)))
        assert torch.equal(x_next, mean + schedule.std[t].item() * noise[:, t + 1])
        expected = log_prob(schedule, t, x_next, mean) if t in (1, 2) else torch.zeros(2, *model.geometry.latents[1:])
        assert torch.equal(kept.log_prob_BTHW[:, t], expected)


def test_every_step_is_recorded_and_no_bit_changes(model: FlowModel) -> None:
    schedule, noise, text = make_schedule(model.sigmas(3), noise_level=0.7), _noise(model, 3), model.encode(PROMPTS)
    columns = CoreColumns(torch.tensor([[2, 18], [3, 19]]), torch.full((2, 2), 0.5))
    plain = denoise(model, noise, text=text, schedule=schedule)
    recorder = Recorder(columns, (1, 2))
    seen = denoise(model, noise, text=text, schedule=schedule, recorder=recorder)
    assert torch.equal(plain.latents_BSCHW, seen.latents_BSCHW)
    assert seen.raw_BTOhw.shape == (2, 3, 2, 8, 8) and seen.raw_BTOhw.dtype == torch.float16 and recorder.maps == {}
    again = recorder.of(slice(None))
    with torch.no_grad():
        model.velocity(seen.latents_BSCHW[:, 2], schedule.sigma[2].item(), text, again)
    assert torch.equal(seen.raw_BTOhw[:, 2].flatten(-2), again.raw_maps().half())


def test_twins_part_at_the_first_noisy_step_with_their_means_and_maps(model: FlowModel) -> None:
    schedule, text = make_schedule(model.sigmas(4), noise_level=0.7, noisy=range(2, 4)), model.encode(PROMPTS)
    rows, columns = torch.tensor([1, 0, 1]), CoreColumns(torch.tensor([[2], [3]]), torch.ones(2, 1))
    noise = torch.randn(3, 5, *model.geometry.latents, generator=torch.Generator().manual_seed(1))
    noise[2, 0] = noise[0, 0]
    given = {"text": text[rows], "schedule": schedule, "recorder": Recorder(columns[rows], (1,))}
    apart, together = (denoise(model, noise, **given, twin_B=twin_B) for twin_B in (None, np.array([7, 2, 7])))
    for name, tolerance in (("latents_BSCHW", 1e-4), ("log_prob_BTHW", 1e-3), ("mean_BTCHW", 1e-4), ("raw_BTOhw", 1e-2)):
        ours, theirs = getattr(together, name).float(), getattr(apart, name).float()
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-4)
    assert torch.equal(together.latents_BSCHW[0, :3], together.latents_BSCHW[2, :3])
    assert not torch.equal(together.latents_BSCHW[0, 3], together.latents_BSCHW[2, 3])
