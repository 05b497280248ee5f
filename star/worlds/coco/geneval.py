"""GenEval's prompts (arXiv 2310.11513): the official suite, byte for byte, and a training set from the same generators.

A sample is the official metadata: `tag`, `include`, for counting `exclude`, and `prompt`, in this order of keys. The suite is
defined by the draws of numpy's `default_rng(43)`. The training set has Flow-GRPO's size and weights (arXiv 2505.05470), drawn
by our seed: the same distribution, not the same file. The validation set is ours.
"""

import json

import numpy as np

from star.prompts import core
from star.prompts.record import Prompt

# COCO's 80 classes in COCO's order, three of them spelled out as GenEval does.
_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
    meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
    racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
    pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote,
    computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush
"""
CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(","))
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TRAIN_PROMPTS = 50_000
TRAIN_WEIGHTS = {"position": 0.7, "counting": 0.5, "color_attr": 0.3, "colors": 0.1, "two_object": 0.1}  # single_object: none
VALIDATION_PROMPTS = {"two_object": 40, "counting": 20, "colors": 40, "position": 40, "color_attr": 40}
_SEED = 43


def _colorable(drawn: int) -> str:
    """The class of a number below 79, counted from the one after "person": nobody is asked to colour a person."""
    return CLASSES[(drawn + 1 + CLASSES.index("person")) % len(CLASSES)]


def _single(cls: str) -> dict:
    return {"tag": "single_object", "include": [{"class": cls, "count": 1}], "prompt": f"a photo of {core.article(cls)}"}


def draw(tag: str, rng: np.random.Generator) -> dict:
    """One sample of a tag, by the official draws in their order. Raises ValueError for a tag that is not drawn one by one."""
    if tag == "two_object":
        a, b = (CLASSES[i] for i in rng.choice(80, size=2, replace=False))
        include = [{"class": a, "count": 1}, {"class": b, "count": 1}]
        prompt = f"{core.article(a)} and {core.article(b)}"
    elif tag == "counting":
        cls = CLASSES[rng.choice(80)]
        n = int(rng.integers(2, 4, endpoint=True))
        include = [{"class": cls, "count": n}]
        prompt = f"{core.NUMBERS[n]} {core.plural(cls)}"
    elif tag == "colors":
        cls = _colorable(rng.choice(79))
        color = COLORS[rng.choice(10)]
        include = [{"class": cls, "count": 1, "color": color}]
        prompt = f"{core.article(color)} {cls}"
    elif tag == "position":
        a, b = (CLASSES[i] for i in rng.choice(80, size=2, replace=False))
        relation = RELATIONS[rng.choice(4)]
        include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
        prompt = f"{core.article(a)} {relation} {core.article(b)}"
    elif tag == "color_attr":
        a, b = (_colorable(i) for i in rng.choice(79, size=2, replace=False))
        color_a, color_b = (COLORS[i] for i in rng.choice(10, size=2, replace=False))
        include = [{"class": a, "count": 1, "color": color_a}, {"class": b, "count": 1, "color": color_b}]
        prompt = f"{core.article(color_a)} {a} and {core.article(color_b)} {b}"
    else:
        raise ValueError(f"no generator for tag {tag!r}")
    exclude = {"exclude": [{"class": cls, "count": n + 1}]} if tag == "counting" else {}
    return {"tag": tag, "include": include, **exclude, "prompt": f"a photo of {prompt}"}


def suite() -> list[dict]:
    """The official test suite of 553 samples, in the official order."""
    rng = np.random.default_rng(_SEED)
    samples = [_single(CLASSES[i]) for i in rng.choice(80, size=80, replace=False)]
    for tag in ("two_object", "counting", "colors", "position", "color_attr"):
        samples += [draw(tag, rng) for _ in range(100)]
    return list({json.dumps(sample): sample for sample in samples}.values())  # of duplicates the first is kept


def official(samples: list[dict]) -> str:
    """Samples as the text of an official metadata file, one JSON object a line."""
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def unordered(sample: dict) -> tuple:
    """What a sample shares with the one that has its objects A and B swapped, whatever the tag."""
    items = tuple(sorted((item["class"], item["count"], item.get("color", "")) for item in sample["include"]))
    return items, next((item["position"][0] for item in sample["include"] if "position" in item), "")


def validation() -> list[dict]:
    """Distinct samples, none in the suite, also not with A and B swapped. The suite has every single object: none is left."""
    rng, taken = np.random.default_rng([_SEED, 1]), {unordered(sample) for sample in suite()}
    samples = []
    for tag, number in VALIDATION_PROMPTS.items():
        drawn = 0
        while drawn < number:
            sample = draw(tag, rng)
            if (key := unordered(sample)) not in taken:
                taken.add(key)
                samples.append(sample)
                drawn += 1
    return samples


def train() -> list[dict]:
    """Flow-GRPO's 50,000 samples in our draw: a tag by its weight, then samples of it until one is free.

    Not free is what the suite or `validation` has, also with A and B swapped. Samples may repeat, as in the source: of
    counting there are not more than 240 different ones.
    """
    taken = {unordered(sample) for sample in suite() + validation()}
    rng = np.random.default_rng([_SEED, 2])
    weights = np.array(list(TRAIN_WEIGHTS.values()))
    samples = []
    for tag in rng.choice(list(TRAIN_WEIGHTS), size=TRAIN_PROMPTS, p=weights / weights.sum()):
        sample = draw(str(tag), rng)
        while unordered(sample) in taken:
            sample = draw(str(tag), rng)
        samples.append(sample)
    return samples


def records(split: str) -> list[Prompt]:
    """The prompt records of a split: train, validation or test."""
    samples = {"train": train, "validation": validation, "test": suite}[split]()
    spans = {sample["prompt"]: sample["include"] for sample in samples}
    spans = {prompt: core.described(prompt, include) for prompt, include in spans.items()}
    return [
        Prompt(f"geneval-{i:05d}", "geneval", sample["tag"], sample["prompt"], spans[sample["prompt"]], sample)
        for i, sample in enumerate(samples)
    ]
