"""Core spans to token columns with the real tokenizer classes."""

import json
from pathlib import Path

import policies
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from records import asked

from star import cli
from star.allocation.columns import TextBlock, chosen_spans, core_columns, cut_prompts, span_columns
from star.models.door import FlowModel
from star.pretraining import base
from star.prompts.record import Span

CLIP, T5 = base.clip_tokenizer(), base.t5_tokenizer()


@pytest.fixture(scope="module")
def model(random_base: Path) -> FlowModel:
    return policies.model(random_base)


def _span(prompt: str, text: str, nth: int = 0, kind: str = "object") -> Span:
    start = -1
    for _ in range(nth + 1):
        start = prompt.index(text, start + 1)
    return Span(text, start, start + len(text), kind)


@pytest.mark.parametrize(
    ("prompt", "text", "nth", "clip", "t5"),
    [
        ("a photo of a red circle", "circle", 0, ["circle</w>"], ["▁circle"]),
        ("a ring and a ring", "ring", 1, ["ring</w>"], ["▁ring"]),
        ('a sign that says "KAT"', "KAT", 0, ["k", "a", "t</w>"], ["K", "A", "T"]),
        ("a Red, CIRCLE!", "Red", 0, ["red</w>"], ["R", "e", "d"]),
        ("a zebra", "zebra", 0, None, ["z", "e", "b", "r", "a"]),
    ],
)
def test_the_tokens_of_a_span(prompt: str, text: str, nth: int, clip: list[str] | None, t5: list[str]) -> None:
    span = _span(prompt, text, nth)
    for tokenizer, expected in ((CLIP, clip), (T5, t5)):
        columns = TextBlock("", tokenizer, 16).columns(prompt, span)
        ids = tokenizer(prompt, truncation=True, max_length=16).input_ids
        tokens = [t for t in tokenizer.convert_ids_to_tokens([ids[c] for c in columns]) if t != "▁"]
        if expected is None:
            assert "".join(tokens).removesuffix("</w>") == text
        else:
            assert tokens == expected
    start = _span("a ring and a ring", "ring", 1).start
    assert (
        TextBlock("", CLIP, 16).columns("a ring and a ring", Span("", start, start, "object")) == []
    )  # an empty span has no token


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*base.WORDS, '"KAT"', "zebra", "été", "naïve,"]), min_size=1, max_size=24), st.data())
def test_never_special_never_padding_always_inside(words: list[str], data: st.DataObject) -> None:
    prompt = " ".join(words)
    i = data.draw(st.integers(0, len(words) - 1))
    start = sum(len(w) + 1 for w in words[:i])
    for tokenizer in (CLIP, T5):
        columns = TextBlock("", tokenizer, 16).columns(prompt, Span(words[i], start, start + len(words[i]), "object"))
        padded = tokenizer(prompt, truncation=True, max_length=16, padding="max_length").input_ids
        tokens = tokenizer.convert_ids_to_tokens(padded)
        assert all(tokens[c] not in tokenizer.all_special_tokens for c in columns)
        text = "".join(tokens[c] for c in columns).replace("</w>", "").replace("▁", "")
        if words[i].isascii():  # characters outside the toy vocabulary have no CLIP token
            assert text.lower() in words[i].lower()


def test_columns_weigh_spans_equally_and_t5_follows_clip(model: FlowModel) -> None:
    prompt = 'a sign that says "KAT"'
    marked = asked(prompt, core=(_span(prompt, "sign"), _span(prompt, "KAT")))
    core = core_columns(model, [marked, asked(""), asked("a photo")])
    columns, weights = core.index_BK[0], core.weight_BK[0]
    sign, letters = (weights[[int(c) % 16 == 2 or int(c) == 17 for c in columns]], weights.sum())
    assert letters == pytest.approx(1.0)
    assert sign.sum() == pytest.approx(0.5)  # CLIP column 2 and T5 column 17 share the span's half
    assert (columns[weights > 0] >= 16).any() and (columns[weights > 0] < 16).any()
    assert torch.equal(core.weight_BK[1:], torch.zeros_like(core.weight_BK[1:]))


def test_truncated_spans_are_dropped_counted_and_said_once(model: FlowModel) -> None:
    long, short = " ".join(["circle"] * 20) + " ring", "a ring"
    prompts = [asked(text, core=(_span(text, "ring"),)) for text in (long, short)]
    assert core_columns(model, prompts).weight_BK.sum(1).tolist() == [0, 1]
    said = cut_prompts([TextBlock("", CLIP, 16), TextBlock("", T5, 16)], prompts)
    assert said.startswith("1 of 2 prompts are cut (1 by CLIPTokenizer at 16 tokens, 1 by T5Tokenizer at 16 tokens)")
    assert f"sees 1 core spans, as 'ring' of '{long}'" in said and "\n" not in said
    assert cut_prompts([TextBlock("", CLIP, 16), TextBlock("", T5, 32)], prompts).endswith("no core span is lost")
    assert cut_prompts([TextBlock("", CLIP, 32), TextBlock("", T5, 32)], prompts) is None
    assert cut_prompts([TextBlock("", CLIP, 16)], []) is None


def test_without_t5_the_columns_are_clips_alone(model: FlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a red ring"
    spans = [_span(prompt, "ring"), _span(prompt, "red", kind="attribute")]
    both = [span_columns(model.text_blocks(), prompt, span) for span in spans]
    monkeypatch.setattr(model.pipe, "text_encoder_3", None)
    alone = [span_columns(model.text_blocks(), prompt, span) for span in spans]
    assert alone == [[3], [2]] and [[c for c in columns if c < 16] for columns in both] == alone
    assert all(max(columns) >= 16 for columns in both)


def test_show_core_prints_the_marked_prompt_and_each_encoders_columns(
    random_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompt = 'a red ring and a sign that says "KAT"'
    core = tuple(_span(prompt, text, kind=kind) for text, kind in (("red", "attribute"), ("ring", "object"), ("KAT", "text")))
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(asked(prompt, core=core).as_dict()))
    override = ["--set", f"policy.model={random_base}"]
    assert cli.main(["prompts", "--show-core", str(file), *override]) == 0
    first, *encoders = capsys.readouterr().out.splitlines()
    assert first == 'a [red|attribute] [ring|object] and a sign that says "[KAT|text]"'
    assert [line.split()[0] for line in encoders] == ["clip", "t5"]
    assert encoders[0].split(None, 1)[1] == "red = 2:red</w>; ring = 3:ring</w>; KAT = 10:k 11:a 12:t</w>"
    assert cli.main(["prompts", "--task", "letters", "--split", "test"]) == 2
    assert "--out: say which, or use --show-core FILE" in capsys.readouterr().err


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["ring", "RING", "ring,", "(ring)", "rings", "ring-ring", "naïve", "字", "ring's"]),
        min_size=1,
        max_size=12,
    ),
    st.data(),
)
def test_a_words_columns_are_its_own_and_every_column_has_one_word(words: list[str], data: st.DataObject) -> None:
    """Columns of different words never meet, repeated or not, and all of them together are all that is no special token."""
    prompt = " ".join(words)
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    for tokenizer in (CLIP, T5):
        columns = [
            TextBlock("", tokenizer, 16).columns(prompt, Span(w, s, s + len(w), "object"))
            for s, w in zip(starts, words, strict=True)
        ]
        flat = [c for found in columns for c in found]
        assert len(flat) == len(set(flat)) and flat == sorted(flat)
        tokens = tokenizer(prompt, truncation=True, max_length=16)
        special = tokenizer.get_special_tokens_mask(tokens.input_ids, already_has_special_tokens=True)
        assert set(flat) <= {c for c, s in enumerate(special) if not s}


def test_tokens_are_chosen_by_kind(model: FlowModel) -> None:
    core = (_span("a red ring", "red", kind="attribute"), _span("a red ring", "ring"))
    prompt = asked("a red ring", core=core)
    assert chosen_spans(prompt, "core") == core
    assert chosen_spans(prompt, ["object", "text"]) == core[1:]
    assert chosen_spans(asked(""), "all") == ()
    everything = core_columns(model, [prompt], "all")
    used = everything.index_BK[0][everything.weight_BK[0] > 0].tolist()
    assert used[:3] == [1, 2, 3] and min(used[3:]) == 16  # the words, not the start and end tokens
    assert len(set(everything.weight_BK[0].tolist())) == 1
