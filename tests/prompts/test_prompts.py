"""Prompt records: the miniature's sets, and core spans on any text."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config import load
from star.errors import InputError
from star.prompts import core, make
from star.prompts.record import KEYS, Span, read
from star.worlds.miniature.prompts import TRAIN_WEIGHTS

CONFIG = load(Path(__file__).parents[2] / "config/miniature.yaml")
TASKS = ("shapes", "letters", "preference")
NAMES = dict(zip(TASKS, ("geneval", "ocr", "pickscore"), strict=True))  # in ids, which name the noise
KINDS = {"object", "attribute", "count", "relation", "text"}


def spans(found: Sequence[Span]) -> list[tuple[str, str]]:
    return [(s.text, s.kind) for s in found]


def check_spans(prompt: str, found: Sequence[Span]) -> None:
    """The contract of core spans, whatever finds them."""
    for span in found:
        assert span.kind in KINDS
        assert prompt[span.start : span.end] == span.text != ""
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


# -- the miniature's sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "n"), [("shapes", 104), ("letters", 96), ("preference", 96)])
def test_sets_have_their_size_and_share_no_prompt(task: str, n: int):
    train, test = make.records(CONFIG, task, "train"), make.records(CONFIG, task, "test")
    assert (len(train), len(test)) == (1000, n)
    assert not {r.text for r in train} & {r.text for r in test}
    assert len({r.text for r in test}) == n
    for records in (train, test):
        assert [r.id for r in records] == [f"{NAMES[task]}-{i:05d}" for i in range(len(records))]
        assert {r.task for r in records} == {task}
        assert all(tuple(r.as_dict()) == KEYS and r.metadata["prompt"] == r.text for r in records)
        assert all(r.metadata["tag"] == r.tag for r in records)


def test_lettered_sets_share_no_word():
    train, test, validation = (
        {r.metadata["text"] for r in make.records(CONFIG, "letters", s)} for s in ("train", "test", "validation")
    )
    assert len(test) == 96 and not train & test and not validation & (train | test)


@pytest.mark.parametrize("task", TASKS)
def test_settings_are_not_chosen_on_test_prompts(task: str):
    validation = [r.text for r in make.records(CONFIG, task, "validation")]
    assert len(set(validation)) == len(validation) >= 75
    assert not set(validation) & {r.text for r in make.records(CONFIG, task, "test")}
    if task != "shapes":  # whose world is too small for three parts
        assert not set(validation) & {r.text for r in make.records(CONFIG, task, "train")}


def test_global_prompts_match_local_ones_and_are_in_no_other_set():
    found = make.records(CONFIG, "preference", "global")
    of_kind = {tag: [r for r in found if r.tag == tag] for tag in ("local", "dark", "light", "one_color")}
    assert [len(same) for same in of_kind.values()] == [32] * 4 and len(found) == 128
    for local, dark, light in zip(of_kind["local"], of_kind["dark"], of_kind["light"], strict=True):
        assert dark.text == f"{local.text} on a dark background"
        assert light.text == f"{local.text} on a light background"
        assert {s.text for s in dark.core} - {s.text for s in local.core} == {"dark"}
    for record in of_kind["one_color"]:
        (item,) = record.metadata["include"]
        assert item["count"] > 1 and item["color"] in record.text and "background" not in record.text
    others = {r.text for split in ("train", "validation", "test") for r in make.records(CONFIG, "preference", split)}
    assert not others & {r.text for r in found} and len({r.text for r in found}) == 128
    with pytest.raises(InputError, match="--split global"):
        make.records(CONFIG, "shapes", "global")


def test_geneval_training_prompts_follow_the_stated_weights():
    train = make.records(CONFIG, "shapes", "train")
    tags = Counter(r.tag for r in train)
    assert tags.keys() == TRAIN_WEIGHTS.keys()  # single_object never
    for tag, weight in TRAIN_WEIGHTS.items():
        assert abs(tags[tag] - 1000 * weight) < 4 * np.sqrt(1000 * weight * (1 - weight)), tag


def test_geneval_training_prompts_are_no_test_prompts_with_the_objects_swapped():
    test = {r.text for r in make.records(CONFIG, "shapes", "test")}
    pattern = re.compile(r"a photo of (an? .+) (and|left of|right of|above|below) (an? .+)")
    for record in make.records(CONFIG, "shapes", "train"):
        if match := pattern.fullmatch(record.text):
            assert f"a photo of {match[3]} {match[2]} {match[1]}" not in test


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_core_span_is_in_place_and_everything_asked_for_is_core(task: str, split: str):
    for record in make.records(CONFIG, task, split):
        found = record.core
        check_spans(record.text, found)
        said = {kind: [s.text for s in found if s.kind == kind] for kind in KINDS}
        metadata = record.metadata
        if task == "letters":
            assert (said["text"], said["object"]) == ([metadata["text"]], [metadata["carrier"]])
            continue
        for item in metadata["include"]:
            shape = item["class"]
            several = shape + ("es" if shape == "cross" else "s")  # spelled out: the vocabulary has one word that ends in s
            assert (several if item["count"] > 1 else shape) in said["object"]
            assert item.get("color") is None or item["color"] in said["attribute"]
            if item["count"] > 1:
                assert [("two", "three", "four")[item["count"] - 2]] == said["count"]
            if "position" in item:
                assert item["position"][0].split()[0] == said["relation"][0].split()[0]
        if task == "shapes":
            rest = record.text
            for span in reversed(found):
                rest = rest[: span.start] + rest[span.end :]
            assert set(rest.split()) <= {"a", "photo", "of", "and"}
            assert len(said["object"]) == len(metadata["include"])


def test_written_files_are_seeded_and_read_back(tmp_path: Path):
    first, second = tmp_path / "new/a.jsonl", tmp_path / "b.jsonl"
    assert make.write(CONFIG, "letters", "train", first) == make.write(CONFIG, "letters", "train", second) == 1000
    assert first.read_bytes() == second.read_bytes()
    assert [json.loads(line) for line in first.read_text().splitlines()] == [r.as_dict() for r in read(first)]
    assert [f.name for f in first.parent.iterdir()] == ["a.jsonl"]


def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="choose one of train, validation, test"):
        make.records(CONFIG, "letters", "dev")
    few = CONFIG.model_copy(update={"tasks": {"letters": CONFIG.tasks["letters"]}})
    with pytest.raises(InputError, match="no `shapes` in the configuration; it has letters"):
        make.records(few, "shapes", "test")
    file = tmp_path / "p.jsonl"
    with pytest.raises(InputError, match="no such prompt file"):
        read(file)
    for text, says in (("", "no prompts in it"), ("{", ":1: not a JSON object"), ("3", "no key `id`"), ('{"id": 1}', "`task`")):
        file.write_text(text)
        with pytest.raises(InputError, match=says):
            read(file)


# -- core spans of other texts -------------------------------------------------------------------------------------------


def item(cls: str, count: int = 1, **more: object) -> dict:
    return {"class": cls, "count": count, **more}


@pytest.mark.parametrize(
    ("prompt", "include", "expected"),
    [
        ("a photo of a bear and a teddy bear", [item("bear"), item("teddy bear")], "bear:object, teddy bear:object"),
        ("a photo of a teddy bear and a bear", [item("bear"), item("teddy bear")], "teddy bear:object, bear:object"),
        ("a photo of an orange orange", [item("orange", color="orange")], "orange:attribute, orange:object"),
        ("a photo of four computer mouses", [item("computer mouse", 4)], "four:count, computer mouses:object"),
        ("a photo of two buses", [item("bus", 2)], "two:count, buses:object"),
        (
            "a photo of a dog right of a hot dog",
            [item("hot dog"), item("dog", position=["right of", 0])],
            "dog:object, right of:relation, hot dog:object",
        ),
        (
            "a photo of a red cat and a cat",
            [item("cat"), item("cat", color="red")],
            "red:attribute, cat:object, cat:object",
        ),
        ("Three Red cars", [item("car", 3, color="red")], "Three:count, Red:attribute, cars:object"),
    ],
)
def test_described_spans(prompt: str, include: list[dict], expected: str):
    found = core.described(prompt, include)
    check_spans(prompt, found)
    assert ", ".join(f"{s.text}:{s.kind}" for s in found) == expected


def test_a_prompt_that_does_not_say_what_its_metadata_asks_for_is_refused():
    with pytest.raises(InputError, match=r"'a photo of a cat' does not say 'red dog'"):
        core.described("a photo of a cat", [item("dog", color="red")])
    with pytest.raises(InputError, match="'a photo of a scar' does not say 'car'"):
        core.described("a photo of a scar", [item("car")])


def test_quoted_spans():
    prompt = 'a sign that says "sign" beside “Open 24 h”'
    found = core.quoted(prompt, "sign")
    check_spans(prompt, found)
    assert spans(found) == [("sign", "object"), ("sign", "text"), ("Open 24 h", "text")]
    assert spans(core.quoted('"sign" on a sign', "sign")) == [("sign", "text"), ("sign", "object")]
    assert spans(core.quoted('"" and "one", then "two" or “three” and “4”')) == [
        (w, "text") for w in ("one", "two", "three", "4")
    ]
    for prompt in ("a sign", 'a sign that says ""', 'a sign that says "'):
        with pytest.raises(InputError, match="no word in double quotes"):
            core.quoted(prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("two dogs and a dog", "two:count, dogs:object, dog:object"),
        ("A photo of the big red barn, 1900", "big:attribute, red:attribute, barn:object, 1900:count"),
        ("a cat's toy under a well-worn sofa", "cat's:object, toy:object, under:relation, well-worn:object, sofa:object"),
        ("Café naïve, 日本 3D", "Café:object, naïve:object, 日本:object, 3D:object"),
        ("To be, or not to be", ""),
        ("", ""),
    ],
)
def test_content_words(prompt: str, expected: str):
    found = core.content_words(prompt)
    check_spans(prompt, found)
    assert ", ".join(f"{s.text}:{s.kind}" for s in found) == expected


@given(st.text())
def test_content_words_of_any_text(prompt: str):
    found = core.content_words(prompt)
    check_spans(prompt, found)
    covered = {i for s in found for i in range(s.start, s.end)}
    # A long run of plain letters is a word; what is left outside the spans can only be stop words.
    for match in re.finditer(r"(?<![\w'’-])[a-zA-Z]{2,}(?![\w'’-])", prompt):
        assert match.start() in covered or match[0].lower() in core.STOP_WORDS


_WORDS = ("red", "dog", "dogs", "two", "the", "a", "left", "of", "and", "“", '"', ",", "teddy bear")


@given(st.lists(st.sampled_from(_WORDS), max_size=12))
def test_spans_of_repeated_words_are_all_there(words: list[str]):
    prompt = " ".join(words)
    found = core.content_words(prompt)
    check_spans(prompt, found)
    assert Counter(s.text for s in found)["dog"] == words.count("dog")
    assert Counter(s.text for s in found)["bear"] == words.count("teddy bear")


_NOUNS = st.lists(st.sampled_from(["cat", "bus", "teddy bear", "bear", "hot dog", "dog", "cross"]), min_size=1, max_size=3)


@given(_NOUNS, st.data())
def test_described_spans_of_any_prompt_of_the_template(nouns: list[str], data: st.DataObject):
    include, parts = [], []
    for noun in dict.fromkeys(nouns):
        color = data.draw(st.sampled_from([None, "red", "orange"]))
        count = data.draw(st.integers(1, 4))
        include.append(item(noun, count) | ({"color": color} if color else {}))
        words = f"{color} {noun}" if color else noun
        several = words + ("es" if words.endswith("s") else "s")
        parts.append(f"a {words}" if count == 1 else f"{('two', 'three', 'four')[count - 2]} {several}")
    prompt = "a photo of " + " and ".join(parts)
    found = core.described(prompt, include)
    check_spans(prompt, found)
    kinds = Counter(s.kind for s in found)
    assert kinds["object"] == len(include)
    assert kinds["attribute"] == sum("color" in i for i in include)
    assert kinds["count"] == sum(i["count"] > 1 for i in include)
    rest = prompt
    for span in reversed(found):
        rest = rest[: span.start] + rest[span.end :]
    assert set(rest.split()) <= {"a", "photo", "of", "and"}
