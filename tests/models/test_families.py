"""The contract of the door, for every family on a tiny random pipeline of its true classes; a further one joins in families.py.

Shapes: B batch, C H W latents, A heads, N tokens of the joint row, I image tokens, K core columns.
"""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import policies
import pytest
import torch
import torch.nn.functional as F
import trainings
from families import FAMILIES, make
from safetensors.torch import load_file

from star import config as configuration
from star import layout
from star.allocation.columns import CoreColumns, span_columns
from star.analysis import results, tables
from star.config import Optimizer, Training
from star.errors import InputError
from star.flow.sampler import denoise
from star.flow.schedule import log_prob, make_schedule, step_mean
from star.layout import ADAPTER_FILE
from star.models.adapter import load_adapter
from star.models.attention import Recorder
from star.models.door import text_blocks
from star.prompts import make as make_prompts
from star.prompts.record import Span
from star.sampling.sample import sample
from star.scoring import folder as scoring
from star.training import checkpoint
from star.training import train as trainer
from star.training.learner import Learner

SIZE = 32  # pixels
LONG = 'a sign that says "KAT" on a dark background and a blue ring left of a red square and a green circle above a yellow ring'
PROMPTS = ["a photo of a red circle", LONG]  # of unlike lengths, also in lines of 32 tokens
MARKED = [Span("circle", 17, 23, "object"), Span("KAT", 18, 21, "text")]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(name, tmp_path_factory.mktemp(name))


def plain(folder: Path) -> diffusers.DiffusionPipeline:
    """The family's own pipeline, without this package."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def starts(shape: tuple[int, int, int], batch: int = 2, steps: int = 0) -> torch.Tensor:
    return torch.randn(batch, steps + 1, *shape, generator=torch.Generator().manual_seed(0))


def drawn(name: str, pipe: diffusers.DiffusionPipeline, x_BCHW: torch.Tensor, **more: object) -> torch.Tensor | np.ndarray:
    """What the family's own pipeline makes of our noise."""
    family = FAMILIES[name]
    arguments = {"height": SIZE, "width": SIZE, "num_inference_steps": 4, "max_sequence_length": 64, "output_type": "latent"}
    arguments |= family.call(more.pop("guidance", 1.0)) | more
    return pipe(prompt=list(PROMPTS), latents=family.latents(x_BCHW), **arguments).images


def as_drawn(name: str, pipe: diffusers.DiffusionPipeline, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Our latents as the family's call returns them."""
    family = FAMILIES[name]
    return family.output(pipe, x_BCHW) if family.output else family.latents(x_BCHW)


def settings(folder: Path, **changes: object) -> dict:
    return {"base": folder, "resolution": SIZE, "max_sequence_length": 64, **changes}


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_euler_by_our_velocity_is_the_pipeline_s_own_call(name: str, folder: Path, guidance: float) -> None:
    model = policies.model(**settings(folder, guidance=guidance))
    noise, schedule = starts(model.geometry.latents), make_schedule(model.sigmas(4), noise_level=0.0)
    ours = denoise(model, noise, text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1]
    pipe = plain(folder)
    theirs = drawn(name, pipe, noise[:, 0], guidance=guidance)
    assert (theirs - as_drawn(name, pipe, noise[:, 0])).abs().max() > 0.3
    torch.testing.assert_close(as_drawn(name, pipe, ours), theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max())
    pixels = drawn(name, pipe, noise[:, 0], guidance=guidance, output_type="np")
    np.testing.assert_allclose(np.stack(model.decode(ours)) / 255, pixels, atol=0.5 / 255 + 2e-3)  # ours are rounded to bytes


@pytest.fixture
def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The softmax of every attention that diffusers' own processors run, float64 [B, N, N], the mean of the heads."""
    seen, kernel = [], F.scaled_dot_product_attention

    def explicit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **more: object) -> torch.Tensor:
        logits = query.double() @ key.double().transpose(-1, -2) * query.shape[-1] ** -0.5
        mask = more.get("attn_mask")
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        seen.append(logits.softmax(-1).mean(1))
        return kernel(query, key, value, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", explicit)
    return seen


def core_of(model: object) -> CoreColumns:
    """The first column of every prompt's marked word, with weight 1."""
    columns = [span_columns(model.text_blocks(), *marked) for marked in zip(PROMPTS, MARKED, strict=True)]
    return CoreColumns(torch.tensor([found[:1] for found in columns]), torch.ones(2, 1))


def test_recording_changes_no_bit_and_records_the_explicit_softmax(
    name: str, folder: Path, rows_seen: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole softmax in the plain pipeline, at the first of two steps; joint rows are the longest.
    model, pipe, passes = policies.model(**settings(folder)), plain(folder), []
    noise = starts(model.geometry.latents)[:, 0]
    pipe.transformer.register_forward_pre_hook(lambda *_: rows_seen.clear())
    pipe.transformer.register_forward_hook(lambda *_: passes.append(list(rows_seen)))
    drawn(name, pipe, noise, num_inference_steps=2)
    longest = max(row_BNN.shape[-1] for row_BNN in passes[0])
    rows = [row_BNN for row_BNN in passes[0] if row_BNN.shape[-1] == longest]
    monkeypatch.undo()

    # Ours, recorded and not.
    blocks, text = tuple(range(len(model.blocks))), model.encode(PROMPTS)
    with torch.no_grad():
        unwatched = model.velocity(noise, 1.0, text)
        model.watch(blocks)
        recorder = Recorder(core_of(model), blocks)
        plainly, recorded = (model.velocity(noise, 1.0, text, given) for given in (None, recorder))
    assert torch.equal(plainly, recorded) and torch.equal(unwatched, recorded)

    # Every recorded probability and the rest of its row are 1.
    images, columns = 16, text.columns_BLE.shape[1]
    image, first = FAMILIES[name].row(images, columns)
    place_B1 = first + core_of(model).index_BK
    for block, row_BNN in zip(blocks, rows, strict=True):
        row_BIN = row_BNN[:, image : image + images]
        core_BI = row_BIN.gather(2, place_B1[:, None].expand(-1, images, -1))[..., 0]
        rest_BI = row_BIN.sum(2) - core_BI
        torch.testing.assert_close(recorder.maps[block].double(), core_BI, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(recorder.maps[block].double() + rest_BI, torch.ones_like(rest_BI), rtol=1e-5, atol=1e-5)


def test_guided_the_conditional_branch_alone_is_recorded(folder: Path) -> None:
    maps = []
    for guidance in (1.0, 2.5):
        model = policies.model(**settings(folder, guidance=guidance))
        model.watch((0, len(model.blocks) - 1))
        recorder = Recorder(core_of(model), (0, len(model.blocks) - 1))
        with torch.no_grad():
            model.velocity(starts(model.geometry.latents)[:, 0], 0.5, model.encode(PROMPTS), recorder)
        maps.append(recorder.raw_maps())
    told = getattr(model.transformer.config, "guidance_embeds", False)
    assert told or torch.allclose(*maps, rtol=1e-3, atol=1e-6)
    assert model.passes == (1 if told else 2)


def test_the_columns_of_a_marked_word_are_its_tokens(folder: Path) -> None:
    model = policies.model(**settings(folder))
    for blocks in (model.text_blocks(), text_blocks(model.settings)):  # with weights and without
        for block in blocks:
            for prompt, span in zip(PROMPTS, MARKED, strict=True):
                tokens = block.tokens(prompt)
                word = block.tokenizer.decode([tokens[column] for column in block.columns(prompt, span)])
                assert word.replace(" ", "").lower() == span.text.lower()
            assert len(block.tokenizer(block.frame[0], add_special_tokens=False).input_ids) >= block.dropped
        assert sum(block.length for block in blocks) >= model.encode(PROMPTS).columns_BLE.shape[1]


def test_another_word_changes_the_columns_of_that_word(name: str, folder: Path) -> None:
    model = policies.model(**settings(folder))
    first, second = (model.encode([f"a photo of a {word}"]).columns_BLE[0] for word in ("circle", "square"))
    changed = (first - second).abs().amax(1) > 1e-6
    columns = span_columns(model.text_blocks(), "a photo of a circle", Span("circle", 13, 19, "object"))
    assert changed[columns].all()
    assert not FAMILIES[name].causal or not changed[: min(columns)].any()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_before_the_first_update_the_ratio_is_exactly_one(folder: Path, precision: str, guidance: float) -> None:
    policy = policies.policy(**settings(folder, precision=precision, guidance=guidance))
    model, blocks = policy.model, (0, 1)
    model.watch(blocks)
    text, schedule = model.encode(PROMPTS), make_schedule(model.sigmas(3), noise_level=0.7)
    noise, core = starts(model.geometry.latents, 4, 3), core_of(model)
    own = [torch.tensor([0, 0]), torch.tensor([1, 1])]  # a batch of each prompt, then an update of both
    seen = [
        denoise(model, noise[2 * i : 2 * i + 2], text=text[rows], schedule=schedule, recorder=Recorder(core[rows], blocks))
        for i, rows in enumerate(own)
    ]
    for t in range(3):
        x, x_next = (torch.stack([part.latents_BSCHW[0, t + later] for part in seen]) for later in (0, 1))
        sigma = schedule.sigma[t].item()
        v = policy.velocity(x, sigma, text[torch.tensor([0, 1])])
        assert v.requires_grad
        new, old = log_prob(schedule, t, x_next, step_mean(schedule, t, x, v)), [part.log_prob_BTHW[0, t] for part in seen]
        assert torch.equal((new - torch.stack(old)).exp(), torch.ones_like(new))
        with torch.no_grad():
            recorder = Recorder(core, blocks)
            assert torch.equal(policy.velocity(x, torch.full((2,), sigma).double(), text, recorder), v)  # the old policy's


def trained(folder: Path, **changes: object) -> Learner:
    """A learner whose average is as large as a long training's."""
    learner = Learner(policies.policy(**settings(folder, **changes)), Optimizer(), Training(epochs=1))
    for i, average in enumerate(learner.ema.average):
        average.copy_(torch.randn(average.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return learner


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Iterator[tuple[Learner, Path]]:
    learner = trained(folder)
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    with learner.policy.using(learner.ema.average):
        yield learner, tmp_path / "epoch0001/adapter"


def test_a_saved_adapter_draws_the_same_picture_in_the_plain_pipeline(
    name: str, folder: Path, saved: tuple[Learner, Path]
) -> None:
    learner, adapter = saved
    model, weights = learner.policy.model, load_file(adapter / ADAPTER_FILE)
    assert not [key for key in weights if "alpha" in key]  # diffusers' loaders refuse them, or count them twice
    noise, schedule = starts(model.geometry.latents), make_schedule(model.sigmas(4), noise_level=0.0)
    ours = denoise(model, noise, text=model.encode(PROMPTS), schedule=schedule).latents_BSCHW[:, -1]
    found = []
    for given in (adapter, weights, None):  # with its header and without, and no adapter at all
        pipe = plain(folder)
        if given is not None:
            pipe.load_lora_weights(dict(given) if isinstance(given, dict) else given)
        found.append(drawn(name, pipe, noise[:, 0]))
    torch.testing.assert_close(as_drawn(name, pipe, ours), found[0], rtol=1e-3, atol=1e-4 * found[0].abs().max())
    assert torch.equal(found[0], found[1]) and (found[0] - found[2]).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_tested_policy_is_the_trained_average_bit_for_bit(folder: Path, tmp_path: Path, precision: str) -> None:
    learner = trained(folder, precision=precision)
    checkpoint.save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    tested = policies.model(**settings(folder, precision=precision))
    load_adapter(tested, tmp_path / "epoch0001/adapter")
    x = starts(tested.geometry.latents)[:, 0]
    with torch.no_grad(), learner.policy.using(learner.ema.average):
        averaged = learner.policy.velocity(x, 0.5, learner.policy.model.encode(PROMPTS))
        assert torch.equal(tested.velocity(x, 0.5, tested.encode(PROMPTS)), averaged)


def test_every_default_target_is_a_module_and_an_unknown_one_names_the_nearest(folder: Path) -> None:
    model = policies.model(**settings(folder))
    names = [name for name, module in model.transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(any(name.endswith(f".{target}") for name in names) for target in model.lora_targets)
    wrong = policies.Lora(rank=4, alpha=8, targets=[*model.lora_targets, "to_kk"])
    with pytest.raises(InputError, match=r"`to_kk` is no module of this model; the nearest is `to_k`"):
        policies.policy(**settings(folder, lora=wrong))


def test_example_text_has_the_shapes_of_encoded_text(folder: Path) -> None:
    model = policies.model(**settings(folder, guidance=2.5))
    true, example = model.encode(PROMPTS), model.example_text(2)
    assert example.columns_BLE.shape[2] == true.columns_BLE.shape[2]
    assert (example.pooled_BP is None) == (true.pooled_BP is None) and (example.negative is None) == (true.negative is None)
    x = starts(model.geometry.latents)[:, 0]
    with torch.no_grad():
        assert model.velocity(x, 0.5, example).shape == x.shape


def test_prompts_to_a_table(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("training.epochs=1", "rollout.steps=2", "rollout.trained_fraction=1", "allocation.blocks=[0, 1]")
    more += ("evaluation.steps=2", "evaluation.images_per_prompt=1", f"results={tmp_path}", "tracking.prompts=0")
    whole = trainings.config(folder, *more, "policy.max_sequence_length=64", "policy.guidance=1.5")
    kept = {"tasks": {"preference": whole.tasks["preference"]}, "methods": {"star": whole.methods["star"]}}
    config = whole.model_copy(update=kept)
    monkeypatch.chdir(trainings.ROOT)
    run = layout.run(config, "preference", "star", 0)
    records = make_prompts.records(config, "preference", "train")
    trainer.train(configuration.run_settings(config, "preference", "star"), 0, records, run.folder)
    (row,) = trainings.metrics(run.folder)
    assert row["ratio_max_deviation"] == 0 and row["grad_norm"] > 0 and row["map_entropy"] > 0
    test = layout.prompts(config, "preference", "test")
    make_prompts.write(config, "preference", "test", test)
    test.write_text("".join(line + "\n" for line in test.read_text().splitlines()[:2]))
    for method, epoch, adapter in (("base", 0, None), ("star", 1, run.adapter(1))):
        tested = layout.run(config, "preference", method, 0)
        sample(config, test, tested.samples(epoch), adapter=adapter, seed=0)
        scoring.score("pickscore", tested.samples(epoch), tested.scores(epoch), config.scorers)
    table = tables.main(config, results.final(config, results.scores(config)))
    assert set(table["method"]) == {"base", "star"} and np.isfinite(table["mean"]).all()
