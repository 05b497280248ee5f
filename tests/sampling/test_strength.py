"""Where training meets testing: what is tested, or taken away, is the policy that was trained, bit for bit."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import policies
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainings import ROOT, SMALL, with_images

from star import cli
from star import config as configuration
from star.errors import InputError
from star.files import write_jsonl
from star.flow.sampler import denoise
from star.flow.schedule import make_schedule
from star.flow.seeding import noise
from star.layout import ADAPTER_FILE
from star.models.adapter import load_adapter
from star.models.door import FlowModel, load_model
from star.models.policy import Policy
from star.models.sd3 import SD3
from star.prompts import make
from star.prompts.record import read
from star.sampling import gallery
from star.sampling.sample import draw, sample, sample_checkpoints
from star.scoring import folder as scoring
from star.scoring import pictures
from star.scoring.pool import RewardPool
from star.training import checkpoint
from star.training import train as trainer
from star.training.learner import Learner

PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']
NAMES = ["0", "1"]
LORA = {"rank": 4, "alpha": 8}
NFT = "methods.nft={objective: {name: nft}, rollout: {same_start: false}, allocation: {source: attention}}"


def _trained(settings: configuration.PolicySettings, seed: int = 0) -> Learner:
    """A learner whose weights, and whose average, are as large as a long training's."""
    policy = Policy(load_model(settings), settings.lora, seed=0)
    learner = Learner(policy, configuration.Optimizer(), configuration.Training(epochs=1))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, average in zip(learner.parameters, learner.ema.average, strict=True):
            average.copy_(torch.randn(average.shape, generator=rng) * 0.1)
            parameter.copy_(average + torch.randn(average.shape, generator=rng) * 0.02)
    return learner


def _as_before(folder: Path) -> Path:
    """The adapter as versions before 2026-11-28 wrote it: the strength stands in the header alone."""
    file = folder / ADAPTER_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    factor = LORA["alpha"] / LORA["rank"]
    weights = {k: t / factor if ".lora_B." in k else t for k, t in load_file(file).items()}
    header["lora_adapter_metadata"] = header["lora_adapter_metadata"].replace('.lora_alpha": 4', '.lora_alpha": 8')
    assert '.lora_alpha": 8' in header["lora_adapter_metadata"]
    old = folder.with_name("before")
    old.mkdir()
    save_file(weights, old / ADAPTER_FILE, metadata=header)
    return old


def _velocity(model: FlowModel) -> torch.Tensor:
    x_BCHW = torch.randn(2, *model.geometry.latents, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.velocity(x_BCHW, 0.5, model.encode(PROMPTS))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_tested_policy_is_the_trained_average_bit_for_bit(
    random_base: Path, tmp_path: Path, precision: str, guidance: float
) -> None:
    settings = policies.settings(random_base, precision=precision, guidance=guidance)
    learner = _trained(settings)
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    raw = _velocity(learner.policy.model)
    with learner.policy.using(learner.ema.average):
        averaged = _velocity(learner.policy.model)
    assert (averaged - raw).abs().max() > 1e-3  # else the test could not tell the average from the last weights
    adapter = tmp_path / "epoch0001" / "adapter"
    for folder in (adapter, _as_before(adapter)):
        tested = load_model(settings)
        load_adapter(tested, folder)
        assert torch.equal(_velocity(tested), averaged), folder
    tested.pipe.fuse_lora()
    merged = _velocity(tested)  # what `star sample` must not do: a sum in bfloat16 loses much of the adapter
    error = (merged - averaged).abs().max() / (averaged - raw).abs().max()
    assert not torch.equal(merged, averaged) and (precision == "float32" or error > 0.01)


def test_every_tool_loads_an_adapter_at_its_full_strength(random_base: Path, tmp_path: Path) -> None:
    learner = _trained(policies.settings(random_base))
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    file = tmp_path / "epoch0001/adapter" / ADAPTER_FILE
    weights = load_file(file)
    assert not [name for name in weights if "alpha" in name]  # diffusers' loaders refuse them, or count them twice
    resaved = tmp_path / "resaved"
    resaved.mkdir()
    save_file(weights, resaved / ADAPTER_FILE)
    model = learner.policy.model
    starts = torch.stack([noise(model.geometry.latents, "test", 0, name, 0) for name in NAMES])

    def picture(load: object) -> np.ndarray:
        pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
        pipe.set_progress_bar_config(disable=True)
        load(pipe)
        settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 16}
        return np.stack(pipe(PROMPTS, latents=starts.clone(), output_type="np", **settings).images)

    def with_peft(pipe: StableDiffusion3Pipeline) -> None:
        config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["rank"], target_modules=list(SD3.lora_targets))
        inject_adapter_in_model(config, pipe.transformer)
        set_peft_model_state_dict(pipe.transformer, {k.removeprefix("transformer."): t for k, t in weights.items()})

    schedule = make_schedule(model.sigmas(4), noise_level=0.0)
    with learner.policy.using(learner.ema.average):
        final = denoise(model, starts[:, None], text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1]
    expected = np.stack(model.decode(final)) / 255
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


@pytest.mark.parametrize(("method", "precision"), [("star", "float32"), ("star", "bfloat16"), ("nft", "bfloat16")])
def test_pictures_drawn_inside_the_training_are_those_of_star_sample(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, precision: str
) -> None:
    more = ("evaluation.steps=4", "evaluation.batch=4", "evaluation.images_per_prompt=2", "training.epochs=2")
    more += ("checkpoints.every=2", "optimizer.learning_rate=0.1", "training.ema_every=1", "policy.guidance=2.5")
    overrides = [*SMALL, *more, f"policy.model={random_base}", f"policy.precision={precision}", NFT]
    config = configuration.load(ROOT / "config/miniature.yaml", overrides)
    monkeypatch.chdir(ROOT)
    settings = configuration.run_settings(config, "preference", method)
    everything = tmp_path / "all.jsonl"
    make.write(config, "preference", "test", everything)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in everything.read_text().splitlines()[:4]))
    inside: list[np.ndarray] = []
    save = checkpoint.save

    def save_and_draw(folder: Path, learner: Learner, *more: object) -> None:
        save(folder, learner, *more)
        model, records = learner.policy.model, read(few)
        sigmas = FlowMatchEulerDiscreteScheduler.from_config(model.pipe.scheduler.config)
        sigmas.set_timesteps(config.evaluation.steps)
        text = model.encode([record.text for record in records])
        for rows in (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 3, 3])):  # star sample's batches
            names = [("test", 0, records[n].id, k) for n, k in zip(rows.tolist(), (0, 1, 0, 1), strict=True)]
            x = torch.stack([noise(model.geometry.latents, *name) for name in names])
            with torch.no_grad(), learner.policy.using(learner.ema.average):
                for sigma, following in zip(sigmas.sigmas[:-1], sigmas.sigmas[1:], strict=True):  # Euler, written out
                    x = x + (following - sigma).item() * model.velocity(x, sigma.item(), text[rows])
            inside.extend(model.decode(x))

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
    model = policies.model(random_base)
    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    model.pipe.scheduler = pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    starts = torch.stack([noise(model.geometry.latents, "test", 0, name, 0) for name in NAMES])
    schedule = make_schedule(model.sigmas(4), noise_level=0.0)
    pipe.scheduler.set_timesteps(4)
    assert torch.equal(make_schedule(model.sigmas(4), noise_level=0.7).sigma, pipe.scheduler.sigmas[:-1])
    ours = denoise(model, starts[:, None], text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1]
    settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 16}
    theirs = pipe(PROMPTS, latents=starts.clone(), output_type="latent", **settings).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_encoded_alike_alone_and_among_others(random_base: Path) -> None:
    model = load_model(policies.settings(random_base))
    long = "a photo of a red circle left of " * 20
    many = model.encode([*PROMPTS, long] * 30)  # more than are encoded at once
    for n, prompt in enumerate([*PROMPTS, long]):
        alone = model.encode([prompt])
        for row in (n, 87 + n):
            torch.testing.assert_close(many.columns_BLE[row], alone.columns_BLE[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(many.pooled_BP[row], alone.pooled_BP[0], rtol=1e-4, atol=1e-5)


def test_the_autoencoder_s_scale_and_shift_are_those_of_diffusers(random_base: Path) -> None:
    model = load_model(policies.settings(random_base))
    pipe = StableDiffusion3Pipeline.from_pretrained(random_base)
    pipe.set_progress_bar_config(disable=True)
    for vae in (model.pipe.vae, pipe.vae):
        vae.register_to_config(scaling_factor=0.7, shift_factor=0.4)
    starts = torch.stack([noise(model.geometry.latents, "test", 0, name, 0) for name in NAMES])
    schedule = make_schedule(model.sigmas(4), noise_level=0.0)
    ours = denoise(model, starts[:, None], text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1]
    settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 16}
    theirs = pipe(PROMPTS, latents=starts.clone(), output_type="np", **settings).images
    assert abs(np.stack(model.decode(ours)) / 255 - theirs).max() <= 0.5 / 255 + 1e-4  # ours are rounded to bytes


@pytest.mark.parametrize("task", ["shapes", "letters", "preference"])
def test_a_picture_has_the_same_reward_in_a_rollout_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(ROOT)
    config = configuration.load("config/miniature.yaml", ["policy.precision=float32", "evaluation.steps=6"])
    everything, few = tmp_path / "all.jsonl", tmp_path / "few.jsonl"
    make.write(config, task, "test", everything)
    few.write_text("".join(line + "\n" for line in everything.read_text().splitlines()[::8][:8]))
    records = read(few)
    sample(with_images(config, 1), few, tmp_path / "images", seed=0)
    scorer = configuration.main_scorer(config, task)
    scoring.score(scorer, tmp_path / "images", tmp_path / "scores.jsonl", config.scorers)
    on_disk = [json.loads(line)["reward"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]

    model = load_model(config.policy)
    schedule = make_schedule(model.sigmas(config.evaluation.steps), noise_level=0.0)
    text, names = model.encode([record.text for record in records]), [(record.id, 0) for record in records]
    drawn = draw(model, text, schedule=schedule, names=names, seed=0)
    with RewardPool({scorer: 1.0}, config.scorers, 0) as pool:
        in_rollout, _ = pool.submit(drawn, records).result()
    assert in_rollout.tolist() == on_disk and len(set(on_disk)) > 1


def test_star_maps_draws_the_pictures_of_star_sample(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    policy = policies.settings(random_base, precision="bfloat16", guidance=2.5)
    learner = _trained(policy)
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    adapter = tmp_path / "epoch0001" / "adapter"
    overrides = [
        "rollout.steps=4",
        "evaluation.steps=4",
        "evaluation.batch=2",
        "rollout.window=null",
        "rollout.window_range=null",
    ]
    config = configuration.load("config/miniature.yaml", overrides).model_copy(update={"policy": policy})
    everything, few = tmp_path / "all.jsonl", tmp_path / "few.jsonl"
    make.write(config, "shapes", "test", everything)
    few.write_text("".join(line + "\n" for line in everything.read_text().splitlines()[:2]))
    sample(with_images(config, 1), few, tmp_path / "images", adapter=adapter, seed=0)
    expected = [pictures.read(path) for path in sorted((tmp_path / "images").glob("*/samples/*.png"))]

    seen: list[np.ndarray] = []
    known = gallery.world(config.prompts.world)
    watched = SimpleNamespace(regions=lambda given, records=(): seen.extend(given) or known.regions(given, records))
    monkeypatch.setattr(gallery, "world", lambda name: watched)
    settings = configuration.run_settings(config, "shapes", "star")
    gallery.draw(settings, few, tmp_path / "maps", adapter, 2, seed=0)
    gallery.measure_prompts(settings, few, tmp_path / "maps", adapter, seed=0)
    assert len(seen) == 2 * len(expected) == 4
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(seen, expected * 2, strict=True))


def test_checkpoints_of_one_process_are_those_of_processes_of_their_own(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    policy = policies.settings(random_base, precision="bfloat16")
    adapters: list[Path | None] = []
    for seed in (1, 2):
        learner = _trained(policy, seed=seed)
        checkpoint.save(tmp_path / f"epoch{seed:04d}", learner, learner.capture(), seed, "digest")
        adapters.append(tmp_path / f"epoch{seed:04d}" / "adapter")
    config = configuration.load("config/miniature.yaml", ["evaluation.steps=2"]).model_copy(update={"policy": policy})
    few = tmp_path / "few.jsonl"
    write_jsonl(few, (record.as_dict() for record in make.records(config, "shapes", "test")[:2]))
    adapters.append(None)  # the base, after two adapters were loaded and put aside
    together = {tmp_path / f"together{i}": adapter for i, adapter in enumerate(adapters)}
    assert sample_checkpoints(with_images(config, 1), few, together) == 6
    drawn = []
    for i, (folder, adapter) in enumerate(together.items()):
        alone = tmp_path / f"alone{i}"
        sample(with_images(config, 1), few, alone, adapter=adapter)
        ours, theirs = ([pictures.read(path) for path in sorted(out.glob("*/samples/*.png"))] for out in (folder, alone))
        assert len(ours) == 2 and all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
        drawn.append(np.stack(ours))
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_an_adapter_of_something_else_is_refused(random_base: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    save_file({"text_encoder.layer.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "text" / ADAPTER_FILE)
    with pytest.raises(InputError, match="not of the transformer"):
        load_adapter(policies.model(random_base), tmp_path / "text")
    wide = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 999)}
    wide["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.zeros(128, 4)
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / ADAPTER_FILE)
    with pytest.raises(InputError, match="does not fit"):
        load_adapter(policies.model(random_base), tmp_path / "wide")
