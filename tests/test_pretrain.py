"""The base's recipe: its captions, its text path against diffusers', and an interrupted run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from star.miniature import base, pretrain
from star.miniature.captions import TEST_PROMPTS, caption, misread, split

RECIPE = pretrain.Recipe(images=64, steps=4, save_every=2, processes=1, batch=8, warmup=1, word_noise_from=3, loosening_steps=1)


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


def test_no_test_word_is_captioned_and_the_stated_share_of_captions_is_wrong() -> None:
    recipe = pretrain.Recipe(images=1500)
    _, texts = pretrain.corpus(recipe)
    held_out = {d["text"] for d in split("ocr", TEST_PROMPTS["ocr"]["ocr"])[1]}
    assert not [t for t in texts if '"' in t and t.split('"')[1] in held_out]
    rng = np.random.default_rng(0)
    for tag in pretrain.MIXTURE:
        for d in split(tag, 0)[0][:40]:
            wrong = misread(d, rng)
            assert wrong["tag"] == tag
            assert caption(wrong) != caption(d) or tag == "ocr"  # another word may be the same word, once in 512


def test_later_lettered_captions_name_another_training_word_as_often_as_stated() -> None:
    recipe = pretrain.Recipe()
    known = split("ocr", TEST_PROMPTS["ocr"]["ocr"])[0][0]["text"]
    texts = [f'a sign that says "{known}"', "a red circle"] * 2000
    changed = pretrain.misspelled(texts, recipe)
    held_out = {d["text"] for d in split("ocr", TEST_PROMPTS["ocr"]["ocr"])[1]}
    words = [t.split('"')[1] for t in changed[::2]]
    assert changed[1::2] == texts[1::2] and not held_out & set(words)
    assert np.mean([w != known for w in words]) == pytest.approx(recipe.word_noise, abs=0.035)  # three standard errors


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
        pretrain._flow_process(0, RECIPE, whole, texts)

        calls, all_reduce = [], distributed.all_reduce

        def stop_at_the_fourth(tensor: torch.Tensor) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            all_reduce(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "all_reduce", stop_at_the_fourth)
            with pytest.raises(KeyboardInterrupt):
                pretrain._flow_process(0, RECIPE, broken, texts)
        distributed.destroy_process_group()
        (broken / "rendezvous").unlink(missing_ok=True)
        assert json.loads((broken / "flow/progress.json").read_text())["step"] == 2
        pretrain._flow_process(0, RECIPE, broken, texts)
    finally:
        torch.set_num_threads(threads)
    for file in ("weights", "average"):
        expected = load_file(whole / f"flow/{file}.safetensors")
        got = load_file(broken / f"flow/{file}.safetensors")
        assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_schedule_warms_up_stays_ends_at_zero_and_loosens() -> None:
    recipe = pretrain.Recipe(steps=1000, warmup=100, decay_share=0.2, loosening_steps=10, loosening_rate=0.5)
    rates = {0: 0.01, 99: 1.0, 800: 1.0, 900: 0.5, 999: 0.005, 1000: 0.5, 1005: 0.25, 1010: 0.0}
    assert {step: pretrain._schedule(step, recipe) for step in rates} == pytest.approx(rates)
