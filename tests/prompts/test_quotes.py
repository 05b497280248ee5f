"""The quoted target: core content, reward and score find the same one, by a rule that says what it cannot tell."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import asked

from star import cli
from star.errors import InputError
from star.prompts import core, quotes
from star.prompts.record import read
from star.scoring.ocr import OcrScorer, similarity, target_of
from star.worlds.coco import ocr as captions

TARGETS = [
    ('a sign that says "OPEN"', "OPEN"),
    ("a sign that says “OPEN”", "OPEN"),
    ("ein Schild: „OFFEN“", "OFFEN"),
    ("ein Schild: „OFFEN”", "OFFEN"),
    ("un panneau « OUVERT »", " OUVERT "),
    ("看板「営業中」", "営業中"),
    ("a sign that says ＂OPEN＂", "OPEN"),
    ('a blank card "" beside a sign that says "OPEN"', "OPEN"),
    ('a card " " and "\u200b" and “OPEN”', "OPEN"),
    ("a sign that says “it's 5'o clock”", "it's 5'o clock"),
    ("the ‘80s diner's sign", None),
    ('a "" card', None),
    ("", None),
]


@pytest.mark.parametrize(("prompt", "target"), TARGETS)
def test_core_content_reward_and_score_find_the_same_target(prompt: str, target: str | None) -> None:
    record = asked(prompt)
    assert OcrScorer.can_score(record) == (target is not None)
    if target is None:
        for refused in (lambda: target_of(record), lambda: core.quoted(prompt)):
            with pytest.raises(InputError):
                refused()
        return
    assert target_of(record) == core.quoted(prompt)[0].text == captions.record(0, prompt).metadata["text"] == target
    assert similarity(target.strip().upper(), target_of(record)) == 1


@pytest.mark.parametrize("prompt", ['a 6" pipe that says "OPEN"', 'a sign that says "OPEN', "a sign that says “OPEN", "”OPEN”"])
def test_a_mark_without_a_partner_is_refused_unless_the_target_is_named(prompt: str) -> None:
    assert not OcrScorer.can_score(asked(prompt))
    with pytest.raises(InputError, match=r"without a partner; pair it, or name the target in metadata\.text"):
        target_of(asked(prompt))
    assert target_of(asked(prompt, {"text": "OPEN"})) == "OPEN" and OcrScorer.can_score(asked(prompt, {"text": "OPEN"}))


def test_several_targets_are_said(line_scorer: OcrScorer, capsys: pytest.CaptureFixture) -> None:
    two = asked('"ONE" above "TWO"')
    line_scorer.check([two, asked('"ONE"'), asked('"ONE" above "TWO"', {"text": "TWO"})])
    said = capsys.readouterr().err
    assert said.startswith('ocr: 1 of 3 prompts quote several texts, as \'"ONE" above "TWO"\' does') and said.count("\n") == 1
    assert "here 'ONE'" in said and target_of(two) == "ONE"
    line_scorer.check([asked('"ONE"')])
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def line_scorer() -> OcrScorer:
    from star.config import load

    return OcrScorer(load("config/miniature.yaml").scorers)


def test_prompts_of_a_file_keep_their_target(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = ["a plate that says “ABC”", 'a card "" and a sign "DEF" beside "GHI"']
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a sign that says abc", "metadata": {"text": "ABC"}}))

    def prompts(file: str) -> int:
        files = f"tasks.letters.prompts={{train: {tmp_path / file}, set: letters}}"
        return cli.main(
            ["prompts", "--set", files, "--task", "letters", "--split", "train", "--out", str(tmp_path / "out.jsonl")]
        )

    assert prompts("p.txt") == 0
    assert "1 of 2 prompts quote several texts" in capsys.readouterr().err
    found = read(tmp_path / "out.jsonl")
    assert [p.metadata["text"] for p in found] == ["ABC", "DEF"]
    assert [[s.text for s in p.core if s.kind == "text"] for p in found] == [["ABC"], ["DEF", "GHI"]]
    assert prompts("p.jsonl") == 0
    (only,) = read(tmp_path / "out.jsonl")
    assert [(s.text, s.kind) for s in only.core] == [("abc", "text")]
    for text, says in (("a sign", "double quotes"), ('a 6" sign', "without a partner")):
        (tmp_path / "p.txt").write_text(f'"A"\n{text}\n')
        assert prompts("p.txt") == 2
        error = capsys.readouterr().err
        assert re.match(rf"star prompts: {tmp_path}/p\.txt:2: prompt '.*{says}", error) and error.count("\n") == 1


def test_a_target_is_read_in_every_writing() -> None:
    composed = "Café"
    for writing in (composed, unicodedata.normalize("NFD", composed), "CAFÉ", "Ｃａｆé", "C a f\u200bé"):
        assert similarity(composed, writing) == similarity(writing, composed) == 1


@given(st.text(st.sampled_from('ab "“”„«»「」＂\u200b'), max_size=14))
def test_quotations_lie_in_the_prompt_apart_and_hold_something(prompt: str) -> None:
    end = -1
    for start, stop in quotes.quotations(prompt):
        assert end < start < stop < len(prompt)
        assert prompt[start:stop].strip(" \u200b")
        end = stop
    if not set(prompt) & set("„«»「」＂"):  # the rule of the published captions
        paired = [m.span(m.lastindex) for m in re.finditer(r'"([^"]*)"|“([^”]*)”', prompt)]
        assert quotes.quotations(prompt) == [(a, b) for a, b in paired if prompt[a:b].strip(" \u200b")]
