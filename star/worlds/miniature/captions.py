"""Descriptions of miniature scenes, their captions, and the train and test sets drawn from them.

Templates and metadata keys are GenEval's (arXiv 2310.11513); vocabulary, lettered captions and free captions are ours.
A description of each task is enumerable, so train and test sets are disjoint by construction: one seeded shuffle, cut once.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from star.prompts.core import article, plural
from star.worlds.miniature.scenes import CARRIERS, COLORS, LETTERS, RELATIONS, SHAPES

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = ("zero", "one", "two", "three", "four")
TEST_PROMPTS = {
    "geneval": dict(zip(TAGS, (5, 10, 7, 12, 30, 40), strict=True)),
    "ocr": {"ocr": 96},
    "pickscore": {"free": 96},
}
_SPLIT_SEED = 43


def caption(d: dict) -> str:
    """The caption of a description (the inverse of reading it)."""
    if "text" in d:
        return f'a {d["carrier"]} {d["phrase"]} "{d["text"]}"'

    def noun(item: dict) -> str:
        words = f"{item['color']} {item['class']}" if "color" in item else item["class"]
        if item["count"] == 1:
            return article(words)
        return f"{NUMBERS[item['count']]} {plural(words)}"

    first = d["include"][0]
    if len(d["include"]) == 1:
        text = noun(first)
    elif "position" in d["include"][1]:
        text = f"{noun(d['include'][1])} {d['include'][1]['position'][0]} {noun(first)}"
    else:
        text = f"{noun(first)} and {noun(d['include'][1])}"
    if d["tag"] != "free":
        return f"a photo of {text}"
    return f"{text} on a {d['background']} background" if "background" in d else text


def _item(shape: str, count: int = 1, **more: object) -> dict:
    return {"class": shape, "count": count, **more}


def descriptions(tag: str) -> Iterator[dict]:
    """Every description of a tag, in a fixed order."""
    pairs, inks = list(itertools.permutations(SHAPES, 2)), list(itertools.permutations(COLORS, 2))
    if tag == "single_object":
        yield from ({"tag": tag, "include": [_item(s)]} for s in SHAPES)
    elif tag == "two_object":
        yield from ({"tag": tag, "include": [_item(a), _item(b)]} for a, b in pairs)
    elif tag == "counting":
        for s, n in itertools.product(SHAPES, (2, 3, 4)):
            yield {"tag": tag, "include": [_item(s, n)], "exclude": [_item(s, n + 1)]}
    elif tag == "colors":
        yield from ({"tag": tag, "include": [_item(s, color=c)]} for s, c in itertools.product(SHAPES, COLORS))
    elif tag == "position":
        for (a, b), relation in itertools.product(pairs, RELATIONS):
            yield {"tag": tag, "include": [_item(b), _item(a, position=[relation, 0])]}
    elif tag == "color_attr":
        for (a, b), (c1, c2) in itertools.product(pairs, inks):
            yield {"tag": tag, "include": [_item(a, color=c1), _item(b, color=c2)]}
    elif tag == "ocr":
        words = map("".join, itertools.product(LETTERS, repeat=3))
        for word, carrier, phrase in itertools.product(words, CARRIERS, ("that says", "that reads")):
            yield {"tag": tag, "text": word, "carrier": carrier, "phrase": phrase}
    elif tag == "free":
        grounds = ({}, {"background": "dark"}, {"background": "light"})
        for ground, s, c, n in itertools.product(grounds, SHAPES, COLORS, (1, 2, 3, 4)):
            yield {"tag": tag, "include": [_item(s, n, color=c)], **ground}
        for ground, (a, b), (c1, c2), relation in itertools.product(grounds, pairs, inks, RELATIONS):
            yield {"tag": tag, "include": [_item(b, color=c2), _item(a, color=c1, position=[relation, 0])], **ground}
    else:
        raise ValueError(f"unknown tag {tag!r}")


def split(tag: str, held_out: int) -> tuple[list[dict], list[dict]]:
    """(train, test) descriptions of a tag, shuffled by a fixed seed; lettered prompts are split by word."""
    everything = list(descriptions(tag))
    rng = np.random.default_rng([_SPLIT_SEED, *tag.encode()])
    if tag == "ocr":
        words = sorted({d["text"] for d in everything})
        test_words = {words[i] for i in rng.permutation(len(words))[:held_out]}
        order = [everything[i] for i in rng.permutation(len(everything))]
        train = [d for d in order if d["text"] not in test_words]
        test = {d["text"]: d for d in order if d["text"] in test_words}
        return train, list(test.values())
    order = [everything[i] for i in rng.permutation(len(everything))]
    return order[held_out:], order[:held_out]


def misread(d: dict, rng: np.random.Generator) -> dict:
    """A description that differs from `d` in one thing: what a careless annotator would have written."""

    def other(options: object, value: str) -> str:
        return str(rng.choice([o for o in options if o != value]))

    if "text" in d:
        return {**d, "text": "".join(rng.choice(list(LETTERS), 3))}
    include = [dict(item) for item in d["include"]]
    changes = ["class"]
    if any("color" in item for item in include):
        changes = ["class", "color", "color"]
    if any(item["count"] > 1 for item in include):
        changes = ["count", "count", "class"]
    if any("position" in item for item in include):
        changes += ["position"] * 3
    change = str(rng.choice(changes))
    item = include[int(rng.integers(len(include)))]
    if change == "class":
        taken = {i["class"] for i in include}
        item["class"] = str(rng.choice([s for s in SHAPES if s not in taken]))
    elif change == "color":
        item["color"] = other(COLORS, item["color"])
    elif change == "count":
        item["count"] = int(rng.choice([n for n in (1, 2, 3, 4) if n != item["count"]]))
    else:
        include[1]["position"] = [other(RELATIONS, include[1]["position"][0]), 0]
    return {**d, "include": include}
