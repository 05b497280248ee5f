"""Where training meets testing: what is tested, or taken away, is the policy that was trained, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from records import asked
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainings import SMALL

from star import cli
from star import config as configuration
from star.errors import InputError
from star.flow.schedule import make_schedule
from star.flow.seeding import noise
from star.models.sd3 import ADAPTER_FILE, Generator
from star.prompts import make
from star.prompts.record import read
from star.scoring import pictures
from star.training import checkpoint
from star.training import train as trainer
from star.training.learner import Learner

ROOT = Path(__file__).parents[2]
PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']
RECORDS = [asked(prompt, id=str(i)) for i, prompt in enumerate(PROMPTS)]
LORA = {"rank": 4, "alpha": 8}


def _policy(base: Path, precision: str = "float32", guidance: float = 1.0) -> configuration.PolicySettings:
    more = {"precision": precision, "guidance": guidance, "lora": LORA, "device": "cpu"}
    return configuration.PolicySettings(model=str(base), resolution=64, max_sequence_length=16, **more)


def _trained(policy: configuration.PolicySettings) -> Learner:
    """A learner whose weights, and whose average, are as large as a long training's."""
    learner = Learner(Generator(policy), configuration.Optimizer(), configuration.Training(epochs=1), seed=0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, average in zip(learner.parameters, learner.ema.average, strict=True):
            average.copy_(torch.randn(average.shape, generator=rng) * 0.1)
            parameter.copy_(average + torch.randn(average.shape, generator=rng) * 0.02)
    return learner


def _as_before(folder: Path, learner: Learner) -> Path:
    """The adapter as versions before 2026-11-28 wrote it: the strength stands in the header alone."""
    file = folder / ADAPTER_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    factor = learner.policy.policy.lora.alpha / learner.policy.policy.lora.rank
    weights = {k: t / factor if ".lora_B." in k else t for k, t in load_file(file).items()}
    header["lora_adapter_metadata"] = header["lora_adapter_metadata"].replace('.lora_alpha": 4', '.lora_alpha": 8')
    assert '.lora_alpha": 8' in header["lora_adapter_metadata"]
    old = folder.with_name("before")
    old.mkdir()
    save_file(weights, old / ADAPTER_FILE, metadata=header)
    return old


def _velocity(generator: Generator) -> torch.Tensor:
    x_BCHW = torch.randn(2, *generator.latent_shape(), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return generator.velocity(x_BCHW, 0.5, generator.encode(RECORDS), generator.empty_prompt())


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_tested_policy_is_the_trained_average_bit_for_bit(
    random_base: Path, tmp_path: Path, precision: str, guidance: float
) -> None:
    policy = _policy(random_base, precision, guidance)
    learner = _trained(policy)
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    raw = _velocity(learner.policy)
    learner.ema.swap()
    averaged = _velocity(learner.policy)
    assert (averaged - raw).abs().max() > 1e-3  # else the test could not tell the average from the last weights
    adapter = tmp_path / "epoch0001" / "adapter"
    for folder in (adapter, _as_before(adapter, learner)):
        tested = Generator(policy)
        tested.load_adapter(folder)
        assert torch.equal(_velocity(tested), averaged), folder
    tested.pipe.fuse_lora()
    merged = _velocity(tested)  # what `star sample` must not do: a sum in bfloat16 loses much of the adapter
    error = (merged - averaged).abs().max() / (averaged - raw).abs().max()
    assert not torch.equal(merged, averaged) and (precision == "float32" or error > 0.01)


def test_every_tool_loads_an_adapter_at_its_full_strength(random_base: Path, tmp_path: Path) -> None:
    learner = _trained(_policy(random_base))
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    file = tmp_path / "epoch0001/adapter" / ADAPTER_FILE
    weights = load_file(file)
    assert not [name for name in weights if "alpha" in name]  # diffusers' loaders refuse them, or count them twice
    resaved = tmp_path / "resaved"
    resaved.mkdir()
    save_file(weights, resaved / ADAPTER_FILE)
    starts = torch.stack([noise(learner.policy.latent_shape(), "test", 0, r.id, 0) for r in RECORDS])

    def picture(load: object) -> np.ndarray:
        pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
        pipe.set_progress_bar_config(disable=True)
        load(pipe)
        settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 16}
        return np.stack(pipe(PROMPTS, latents=starts.clone(), output_type="np", **settings).images)

    def with_peft(pipe: StableDiffusion3Pipeline) -> None:
        config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["rank"], target_modules=configuration.Lora().targets)
        inject_adapter_in_model(config, pipe.transformer)
        set_peft_model_state_dict(pipe.transformer, {k.removeprefix("transformer."): t for k, t in weights.items()})

    learner.ema.swap()
    schedule = make_schedule(learner.policy.pipe.scheduler, 4, 0.0)
    final = learner.policy.sample(starts[:, None], learner.policy.encode(RECORDS), None, schedule).latents_BSCHW[:, -1]
    expected = np.stack(learner.policy.decode(final)) / 255
    loaders = {
        "folder": lambda pipe: pipe.load_lora_weights(file.parent),
        "dictionary": lambda pipe: pipe.load_lora_weights(dict(weights)),
        "peft": with_peft,
        "saved again": lambda pipe: pipe.load_lora_weights(resaved),
    }
    drawn = {name: picture(load) for name, load in loaders.items()}
    assert abs(picture(lambda pipe: None) - drawn["folder"]).max() > 0.01
    for name, pixels in drawn.items():
        assert np.array_equal(pixels, drawn["folder"]), name
        assert abs(pixels - expected).max() <= 0.5 / 255 + 1e-4, name  # ours are rounded to bytes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pictures_drawn_inside_the_training_are_those_of_star_sample(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    more = ("evaluation.steps=4", "evaluation.batch=4", "evaluation.images_per_prompt=2", "training.epochs=2")
    more += ("checkpoints.every=2", "optimizer.learning_rate=0.1", "training.ema_every=1", "policy.guidance=2.5")
    overrides = [*SMALL, *more, f"policy.model={random_base}", f"policy.precision={precision}"]
    config = configuration.load(ROOT / "config/miniature.yaml", overrides)
    monkeypatch.chdir(ROOT)
    settings = configuration.run_settings(config, "preference", "star")
    everything = tmp_path / "all.jsonl"
    make.write(config, "preference", "test", everything)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in everything.read_text().splitlines()[:4]))
    inside: list[np.ndarray] = []
    save = checkpoint.save

    def save_and_draw(folder: Path, learner: Learner, *more: object) -> None:
        save(folder, learner, *more)
        learner.ema.swap()
        policy, records = learner.policy, read(few)
        sigmas = FlowMatchEulerDiscreteScheduler.from_config(policy.pipe.scheduler.config)
        sigmas.set_timesteps(config.evaluation.steps)
        text, empty = policy.encode(records), policy.empty_prompt()
        for rows in (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 3, 3])):  # star sample's batches
            names = [("test", 0, records[n].id, k) for n, k in zip(rows.tolist(), (0, 1, 0, 1), strict=True)]
            x = torch.stack([noise(policy.latent_shape(), *name) for name in names])
            with torch.no_grad():
                for sigma, following in zip(sigmas.sigmas[:-1], sigmas.sigmas[1:], strict=True):  # Euler, written out
                    x = x + (following - sigma).item() * policy.velocity(x, sigma.item(), text[rows], empty)
            inside.extend(policy.decode(x))
        learner.ema.swap()

    monkeypatch.setattr(checkpoint, "save", save_and_draw)
    trainer.train(settings, 0, make.records(config, "preference", "train"), tmp_path / "run")
    drawn = {}
    for name, adapter in (("base", []), ("trained", ["--adapter", str(tmp_path / "run/checkpoints/epoch0002/adapter")])):
        command = [
            "sample",
            "--config",
            str(ROOT / "config/miniature.yaml"),
            "--prompts",
            str(few),
            "--out",
            str(tmp_path / name),
        ]
        assert cli.main(command + [part for each in overrides for part in ("--set", each)] + adapter) == 0
        drawn[name] = [pictures.read(path) for path in sorted((tmp_path / name).glob("*/samples/*.png"))]
    assert len(inside) == len(drawn["trained"]) == 8
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(inside, drawn["trained"], strict=True))
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(drawn["trained"], drawn["base"], strict=True)) > 5


def test_the_base_s_own_shift_is_used_in_training_and_testing(random_base: Path) -> None:
    generator = Generator(_policy(random_base))
    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    generator.pipe.scheduler = pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    starts = torch.stack([noise(generator.latent_shape(), "test", 0, r.id, 0) for r in RECORDS])
    schedule = make_schedule(generator.pipe.scheduler, 4, 0.0)
    assert torch.equal(make_schedule(generator.pipe.scheduler, 4, 0.7).sigma, schedule.sigma)
    ours = generator.sample(starts[:, None], generator.encode(RECORDS), None, schedule).latents_BSCHW[:, -1]
    settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 16}
    theirs = pipe(PROMPTS, latents=starts.clone(), output_type="latent", **settings).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_something_else_is_refused(random_base: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    save_file({"text_encoder.layer.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "text" / ADAPTER_FILE)
    with pytest.raises(InputError, match="not of the transformer"):
        Generator(_policy(random_base)).load_adapter(tmp_path / "text")
    wide = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 999)}
    wide["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.zeros(128, 4)
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / ADAPTER_FILE)
    with pytest.raises(InputError, match="does not fit"):
        Generator(_policy(random_base)).load_adapter(tmp_path / "wide")
