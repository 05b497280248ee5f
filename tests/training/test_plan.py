"""The plan of a training: its numbers against counting, its memory against tensors that autograd really saved; the presets."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from records import asked

from star import config as configuration
from star.config import Compute, PolicySettings
from star.models.door import load_model, unloaded_model
from star.models.policy import Policy
from star.models.unloaded import configurations_of, pipeline
from star.training import plan
from star.training import train as trainer
from star.training.epoch import trained_steps
from star.training.learner import Learner

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


@pytest.fixture
def planned(random_base: Path) -> tuple[configuration.RunSettings, Policy, plan.Memory]:
    """Settings of the miniature's size, a policy without weights, and the plan's bytes."""
    changes = [f"policy.model={random_base}", "policy.precision=float32", "rollout.batch=6", "objective={name: nft}"]
    settings = configuration.run_settings(configuration.load(ROOT / "config/miniature.yaml", changes), "shapes", "flow_grpo")
    with torch.device("meta"):
        policy = Policy(unloaded_model(plan.weightless(settings.policy)), settings.policy.lora, 0)
    with plan.standing_in(policy.model, settings.policy):
        return settings, policy, plan.memory_of(policy, settings, 1)


def test_planned_bytes_are_those_of_real_tensors(
    random_base: Path, planned: tuple[configuration.RunSettings, Policy, plan.Memory]
) -> None:
    """Of weights, adapter, gradient, optimizer, averages, text encoders and activations; planned without any weights."""
    settings, _, memory = planned
    model = load_model(settings.policy)
    policy = Policy(model, settings.policy.lora, 0)
    learner = Learner(policy, settings.optimizer, settings.training, keeps_old=True)
    model.velocity(torch.randn(2, *model.geometry.latents), 0.5, model.encode([PROMPT] * 2)).square().mean().backward()
    gradient = [p.grad.clone() for p in policy.parameters]
    learner.optimizer.step()

    def nbytes(tensors: Iterable[torch.Tensor]) -> int:
        return sum(t.untyped_storage().nbytes() for t in tensors)

    moments = [t for state in learner.optimizer.state.values() for name, t in state.items() if name != "step"]
    counted = {
        "whole transformer": nbytes(p for p in model.transformer.parameters() if not p.requires_grad),
        "autoencoder": nbytes(model.pipe.vae.parameters()),
        "adapter": nbytes(policy.parameters),
        "gradient": nbytes(gradient),
        "optimizer": nbytes(moments),
        "average": nbytes(learner.ema.average),
        "old policy": nbytes(learner.old),
        "text encoders": sum(nbytes(encoder.parameters()) for encoder in model.text_encoders()),
    }
    assert {part: memory.parts[part] for part in counted} == counted
    assert memory.parts["transformer"] == counted["whole transformer"]
    activations = memory.parts["activations"]
    assert activations == pytest.approx(plan.saved_for_backward(model, 6), rel=1e-3)  # which a test above holds to real ones
    kept = sum(size for part, size in counted.items() if part != "text encoders")
    assert memory.phases["update"] == kept + activations


def test_what_is_alive_at_a_time_is_counted(planned: tuple[configuration.RunSettings, Policy, plan.Memory]) -> None:
    _, policy, _ = planned

    def chain() -> torch.Tensor:
        x = torch.zeros(1000)  # 4000 bytes; at most two of these are alive at a time
        for _ in range(5):
            x = x + 1
        return x

    assert plan.most_alive(policy.model, chain) == 8000


@pytest.mark.parametrize(
    ("repository", "billions"),
    [
        ("stabilityai/stable-diffusion-3.5-medium", {"transformer": 2.24, "text_encoder_3": 4.76}),
        ("stabilityai/stable-diffusion-3.5-large", {"transformer": 8.06, "text_encoder_2": 0.695}),
        ("black-forest-labs/FLUX.1-dev", {"transformer": 11.9, "text_encoder_2": 4.76, "vae": 0.084}),
        ("Qwen/Qwen-Image", {"transformer": 20.4, "text_encoder": 8.29, "vae": 0.127}),
        ("Tongyi-MAI/Z-Image", {"transformer": 6.15, "text_encoder": 4.02}),
    ],
)
def test_kept_configurations_have_the_published_sizes(repository: str, billions: dict[str, float]) -> None:
    """In 10^9 parameters, as the models' cards and papers round them; no weight is allocated."""
    settings = PolicySettings(model=repository, resolution=512, guidance=1.0, precision="bfloat16", device="cpu")
    made = pipeline(settings)
    for name, expected in billions.items():
        parameters = list(made.components[name].parameters())
        assert sum(p.numel() for p in parameters) / 1e9 == pytest.approx(expected, rel=0.005), name
        assert {(p.device.type, p.dtype) for p in parameters} == {("meta", torch.bfloat16)}
    kept = json.loads((ROOT / configurations_of(settings).source).read_text())
    assert kept["source"] and kept["unverified"]


@pytest.mark.parametrize("name", ["sd35-medium", "sd35-large", "flux1-dev", "qwen-image", "z-image"])
def test_a_preset_s_base_has_configurations_and_its_batches_divide(name: str) -> None:
    settings = configuration.run_settings(configuration.load(ROOT / f"config/{name}.yaml"), "pickscore", "star")
    assert configurations_of(settings.policy).source == f"star/models/configurations/{name}.json"
    trainer.check(settings, RECORDS * 50)


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
    epoch, rollout, update, cost = plan.describe(settings, gpus, branches=1 if fast else 2)
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
