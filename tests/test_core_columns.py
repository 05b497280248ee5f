"""Core spans to token columns with the real tokenizer classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.allocation.core import core_columns, span_columns
from star.miniature import base

CLIP, T5 = base.clip_tokenizer(), base.t5_tokenizer()


def _span(prompt: str, text: str, nth: int = 0) -> dict:
    start = -1
    for _ in range(nth + 1):
        start = prompt.index(text, start + 1)
    return {"text": text, "start": start, "end": start + len(text), "kind": "object"}


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
        columns = span_columns(tokenizer, prompt, span["start"], span["end"], 16)
        ids = tokenizer(prompt, truncation=True, max_length=16).input_ids
        tokens = [t for t in tokenizer.convert_ids_to_tokens([ids[c] for c in columns]) if t != "▁"]
        if expected is None:
            assert "".join(tokens).removesuffix("</w>") == text
        else:
            assert tokens == expected
    repeated = span_columns(CLIP, "a ring and a ring", *(_span("a ring and a ring", "ring", n)["start"] for n in (1, 1)), 16)
    assert repeated == []  # an empty span has no token


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*base.WORDS, '"KAT"', "zebra", "été", "naïve,"]), min_size=1, max_size=24), st.data())
def test_never_special_never_padding_always_inside(words: list[str], data: st.DataObject) -> None:
    prompt = " ".join(words)
    i = data.draw(st.integers(0, len(words) - 1))
    start = sum(len(w) + 1 for w in words[:i])
    for tokenizer in (CLIP, T5):
        columns = span_columns(tokenizer, prompt, start, start + len(words[i]), 16)
        padded = tokenizer(prompt, truncation=True, max_length=16, padding="max_length").input_ids
        tokens = tokenizer.convert_ids_to_tokens(padded)
        assert all(tokens[c] not in tokenizer.all_special_tokens for c in columns)
        text = "".join(tokens[c] for c in columns).replace("</w>", "").replace("▁", "")
        if words[i].isascii():  # characters outside the toy vocabulary have no CLIP token
            assert text.lower() in words[i].lower()


def test_columns_weigh_spans_equally_and_t5_follows_clip() -> None:
    prompt = 'a sign that says "KAT"'
    core = core_columns(
        [(CLIP, 16), (T5, 16)], [prompt, "", "a photo"], [[_span(prompt, "sign"), _span(prompt, "KAT")], [], []]
    )
    columns, weights = core.index_BK[0], core.weight_BK[0]
    sign, letters = (weights[[int(c) % 16 == 2 or int(c) == 17 for c in columns]], weights.sum())
    assert letters == pytest.approx(1.0)
    assert sign.sum() == pytest.approx(0.5)  # CLIP column 2 and T5 column 17 share the span's half
    assert (columns[weights > 0] >= 16).any() and (columns[weights > 0] < 16).any()
    assert torch.equal(core.weight_BK[1:], torch.zeros_like(core.weight_BK[1:]))


def test_truncated_span_is_dropped_with_a_warning() -> None:
    prompt = " ".join(["circle"] * 20) + " ring"
    with pytest.warns(UserWarning, match="'ring' is cut away"):
        core = core_columns([(CLIP, 16)], [prompt], [[_span(prompt, "ring")]])
    assert core.weight_BK.sum() == 0
