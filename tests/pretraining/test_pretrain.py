"""The base's recipe: its captions, its text path against diffusers', and an interrupted run."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import distributed

from star import cli
from star.pretraining import base, pretrain
from star.worlds.miniature.captions import TEST_PROMPTS, caption, misread, split

RECIPE = pretrain.Recipe(images=64, steps=4, save_every=2, processes=1, batch=8, warmup=1, noisy_share=0.25)


def test_vocabulary_is_the_same_at_every_call_and_words_are_single_tokens() -> None:
    first, second = base.clip_tokenizer(), base.clip_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    for tokenizer, extra in ((first, 2), (base.t5_tokenizer(), 1)):
        assert all(len(tokenizer(word).input_ids) == 1 + extra for word in base.WORDS)


def test_captions_are_encoded_as_the_pipeline_does() -> None:
    pipe = base.pipeline(0)
    text = 'a sign that says "KAT"'
    ids = [
        t(text, padding="max_length", max_length=base.TEXT_LENGTH, return_tensors="pt").input_ids
        for t in (pipe.tokenizer, pipe.tokenizer_3)
    ]
    with torch.no_grad():
        columns, pooled = pretrain.encode_captions(pipe, *ids)
        expected, _, expected_pooled, _ = pipe.encode_prompt(
            text, None, None, do_classifier_free_guidance=False, max_sequence_length=base.TEXT_LENGTH
        )
    torch.testing.assert_close(columns, expected)
    torch.testing.assert_close(pooled, expected_pooled)


def test_no_test_word_is_captioned() -> None:
    recipe = pretrain.Recipe(images=1500)
    _, texts = pretrain.corpus(recipe)
    held_out = {d["text"] for d in split("ocr", TEST_PROMPTS["ocr"]["ocr"])[1]}
    assert not [t for t in [*texts, *pretrain.noisy(texts, recipe)] if '"' in t and t.split('"')[1] in held_out]


def test_misreadings_differ_from_what_was_written() -> None:
    rng = np.random.default_rng(0)
    for tag in pretrain.MIXTURE:
        for d in split(tag, 0)[0][:40]:
            wrong = misread(d, rng)
            assert wrong["tag"] == tag
            assert caption(wrong) != caption(d) or tag == "ocr"  # another word may be the same word, once in 512


def test_late_captions_are_wrong_as_often_as_stated() -> None:
    recipe = pretrain.Recipe(caption_noise=0.25, word_noise=0.6)
    known = split("ocr", TEST_PROMPTS["ocr"]["ocr"])[0][0]["text"]
    texts = [f'a sign that says "{known}"', "a red circle", f'a board that says "{known}"', "a blue ring"] * 2000
    changed = pretrain.noisy(texts, recipe)
    lettered, others = (
        [(before, after) for before, after in zip(texts, changed, strict=True) if ('"' in before) == kind]
        for kind in (True, False)
    )
    assert all(before.split('"')[0] == after.split('"')[0] for before, after in lettered)  # the plate stays
    assert {after for _, after in others} == {"a red circle", "a blue ring"}
    # three standard errors; half of the other captions taken are the same caption
    assert np.mean([before != after for before, after in lettered]) == pytest.approx(recipe.word_noise, abs=0.025)
    assert np.mean([before != after for before, after in others]) == pytest.approx(recipe.caption_noise / 2, abs=0.016)


def test_the_autoencoder_learns_the_same_from_the_same_seed() -> None:
    recipe = pretrain.Recipe(images=64, autoencoder_steps=40, autoencoder_whole_steps=8, autoencoder_batch=8)
    pictures, _ = pretrain.corpus(recipe)
    x = torch.from_numpy(pictures[:16]).permute(0, 3, 1, 2) / 127.5 - 1

    def error(vae: torch.nn.Module) -> float:
        with torch.no_grad():
            return (vae.decode(vae.encode(x).latent_dist.mean).sample - x).square().mean().item()

    torch.manual_seed(0)
    first = base.autoencoder()
    second = copy.deepcopy(first)
    before = error(first)
    pretrain.train_autoencoder(first, pictures, recipe)
    pretrain.train_autoencoder(second, pictures, recipe)
    assert error(first) < 0.5 * before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    latents = pretrain.encode_pictures(first, pictures)
    assert latents.shape == (64, 8, 16, 16) and latents.dtype == torch.float16


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    texts = ["a red circle", 'a sign that says "KAT"'] * 32
    latents = torch.randn(64, 8, 16, 16, generator=torch.Generator().manual_seed(0)).half()

    def work(name: str) -> Path:
        folder = tmp_path / name
        base.autoencoder().save_pretrained(folder / "vae")
        save_file({"latents": latents}, folder / "latents.safetensors")
        return folder

    threads = torch.get_num_threads()
    try:
        whole, broken = work("whole"), work("broken")
        pretrain.flow_process(0, RECIPE, whole, texts)

        calls, all_reduce = [], distributed.all_reduce

        def stop_at_the_fourth(tensor: torch.Tensor) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            all_reduce(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "all_reduce", stop_at_the_fourth)
            with pytest.raises(KeyboardInterrupt):
                pretrain.flow_process(0, RECIPE, broken, texts)
        distributed.destroy_process_group()
        (broken / "rendezvous").unlink(missing_ok=True)
        assert json.loads((broken / "flow/progress.json").read_text())["step"] == 2
        pretrain.flow_process(0, RECIPE, broken, texts)
    finally:
        torch.set_num_threads(threads)
    for file in ("weights", "average"):
        expected = load_file(whole / f"flow/{file}.safetensors")
        got = load_file(broken / f"flow/{file}.safetensors")
        assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_schedule_warms_up_stays_and_ends_at_zero() -> None:
    rates = {0: 0.01, 99: 1.0, 800: 1.0, 900: 0.5, 999: 0.005, 1000: 0.0}
    assert {step: pretrain.rate_factor(step, 1000, 100, 0.2) for step in rates} == pytest.approx(rates)


TINY = (
    *("base.images=64", "base.autoencoder_steps=4", "base.autoencoder_whole_steps=2", "base.autoencoder_batch=8"),
    *("base.steps=3", "base.batch=8", "base.processes=1", "base.save_every=2", "base.compile=false"),
    *("preference.pairs=32", "preference.steps=2", "preference.batch=8", "preference.held_out=8"),
)


def test_the_stage_runs_to_its_card(tmp_path: Path) -> None:
    recipe = [argument for change in TINY for argument in ("--recipe", change)]
    fast = ["--set", "evaluation.steps=1", "--set", "evaluation.images_per_prompt=1"]
    out = tmp_path / "out"
    assert cli.main(["pretrain-miniature", "--out", str(out), "--work", str(tmp_path / "work"), *recipe, *fast]) == 0
    assert (out / "pickscore/training.json").exists() and (out / "base/model_index.json").exists()
    training = json.loads((out / "base/training.json").read_text())
    assert training["recipe"]["steps"] == 3 and training["losses"][-1][0] == 3
    card = (out / "base/README.md").read_text()
    assert f"flow-matching loss {training['losses'][-1][1]:.3f}" in card and "| color_attr | 0." in card
    assert Image.open(out / "base/samples.png").size == (1280, 768)  # 10 x 6 pictures of 64 pixels, twice as large


@pytest.mark.parametrize("change", ["steps=3", "base.step=3", "base.steps=few", "base.lr=[", "other.steps=3", "base.steps"])
def test_a_recipe_that_does_not_fit_is_refused_before_work(change: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert cli.main(["pretrain-miniature", "--out", str(out), "--work", str(tmp_path / "work"), "--recipe", change]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"star pretrain-miniature: --recipe {change}: ") and line.count("\n") == 1
    assert not out.exists()
