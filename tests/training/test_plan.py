"""The plan of a training: its numbers against counting, its memory against tensors that autograd really saved; the presets."""

import re
from pathlib import Path

import pytest
import torch
from records import asked

from star import config as configuration
from star.config import Compute
from star.models.door import load_model
from star.models.policy import Policy
from star.training import plan
from star.training import train as trainer
from star.training.epoch import trained_steps

ROOT = Path(__file__).parents[2]
PROMPT = "a photo of a red circle"
RECORDS = [asked(PROMPT)] * 6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_predicted_activations_are_what_autograd_saves(random_base: Path, checkpointing: bool) -> None:
    config = configuration.load(ROOT / "config/miniature.yaml", [f"policy.model={random_base}", "policy.guidance=2.0"])
    model = load_model(config.policy, Compute(gradient_checkpointing=checkpointing))
    model.watch(config.allocation.blocks)
    policy = Policy(model, config.policy.lora, 0)
    weights = {t.untyped_storage().data_ptr() for t in (*model.transformer.parameters(), *model.transformer.buffers())}
    saved, alive = {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    text = model.encode([PROMPT] * 6)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        policy.velocity(torch.randn(6, *model.geometry.latents), 0.5, text)
    truly = sum(size for place, size in saved.items() if place not in weights)
    assert plan.saved_for_backward(model, 6) == pytest.approx(truly, rel=0.03)
    for block in model.blocks:  # as compute.compile does; compiled code would read what is not there
        block.compile()
    assert plan.saved_for_backward(model, 6) == pytest.approx(truly, rel=0.03)


def test_checkpointing_keeps_a_fraction_and_changes_no_gradient(random_base: Path) -> None:
    config = configuration.load(ROOT / "config/miniature.yaml", [f"policy.model={random_base}", "policy.precision=float32"])
    kept, gradients = [], []
    for checkpointing in (False, True):
        model = load_model(config.policy, Compute(gradient_checkpointing=checkpointing))
        policy = Policy(model, config.policy.lora, 0)
        kept.append(plan.activation_bytes(model, 6, checkpointing))
        x = torch.randn(6, *model.geometry.latents, generator=torch.Generator().manual_seed(0))
        policy.velocity(x, 0.5, model.encode([PROMPT] * 6)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters]))
    assert kept[1] < 0.5 * kept[0]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def _preset(*files: str) -> configuration.Config:
    """The real configuration with changes on top, as several --configfile of Snakemake."""
    return configuration.load([ROOT / f"config/{file}.yaml" for file in ("sd35-medium", *files)])


@pytest.mark.parametrize(("fast", "trained"), [((), 9), (("fast/sd35-medium",), 3)])
@pytest.mark.parametrize("gpus", [1, 4, 8, 32])
def test_presets_keep_the_epoch_and_share_it_evenly(gpus: int, fast: tuple[str, ...], trained: int) -> None:
    config = _preset(*fast, *([f"gpus/{gpus}"] if gpus > 1 else []))
    settings = configuration.run_settings(config, "geneval", "star")
    assert (settings.rollout.groups, settings.rollout.group_size, config.compute.processes) == (48, 24, gpus)
    trainer.check(settings, RECORDS * 50, gpus)
    epoch, rollout, update, cost = plan.describe(settings, gpus)
    assert epoch.startswith(f"epoch    1152 images: 48 prompts x 24; 10 denoising steps, {trained} of them trained")
    batches, size, share = map(int, re.findall(r"\d+", rollout)[:3])
    assert batches * size == 1152 and share * gpus == batches
    micro, of, passes = map(int, re.findall(r"at most (\d+) micro-batch\(es\) of (\d+) a process, so (\d+)", update)[0])
    assert sum(map(int, re.findall(r"\d+", cost))) == {9: 74, 3: 16}[trained]  # by hand: 20 + 2 x 9 x (2 + 1), 10 + 3 x (1 + 1)
    assert passes == micro * trained and micro * of * gpus >= 1152 / 2 > (micro - 1) * of * gpus


@pytest.mark.parametrize(("task", "groups"), [("geneval", (48, 24)), ("ocr", (48, 24)), ("pickscore", (64, 18))])
def test_the_fast_preset_is_what_flow_grpo_publishes(task: str, groups: tuple[int, int]) -> None:
    """The values are those of geneval_sd3_fast_nocfg and pickscore_sd3_fast_nocfg in yifan123/flow_grpo's config/grpo.py."""
    settings = configuration.run_settings(_preset("fast/sd35-medium"), task, "flow_grpo")
    rollout, objective = settings.rollout, settings.objective
    assert (rollout.groups, rollout.group_size, rollout.steps, settings.policy.guidance) == (*groups, 10, 1.0)
    assert (rollout.sampler, rollout.noise_level, objective.clip_range, objective.kl_weight) == ("cps", 0.8, 1e-5, 0.0)
    windows = {trained_steps(rollout, 0, epoch) for epoch in range(60)}
    assert windows == {range(0, 3), range(1, 4), range(2, 5)}
    trainer.check(settings, RECORDS * 50, 1)
