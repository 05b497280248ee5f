"""The miniature's prompt records: the vocabulary behind the `miniature` world of star.prompts.

Test sets are those of star.worlds.miniature.captions. GenEval's training set is drawn from what the test set does not hold, not
even with its two objects swapped. Flow-GRPO (arXiv 2505.05470) weighs the tags 7 : 5 : 3 : 1 : 1, hardest first, for a model
that sees millions of images; here they weigh nearly the same, so the tags of which the base can do something count. The
validation set is for choosing settings: as many prompts a tag as in the test set, other words (ocr), other prompts
(pickscore), and for geneval, whose world is too small for three parts, the training set's prompts in another draw.

The `global` set asks if allocation gives way where a prompt speaks of the whole picture: free captions that are in no other
set, each content thrice (tags `local`: no ground named, `dark` and `light`: "on a dark background"), and captions whose objects
all have one colour (`one_color`).
"""

import numpy as np

from star.prompts import core
from star.prompts.record import Prompt, Span
from star.worlds.miniature.captions import TEST_PROMPTS, caption, split

TRAIN_PROMPTS = 1000
GLOBAL_PROMPTS = 32  # of each tag
TRAIN_WEIGHTS = {"counting": 0.25, "colors": 0.2, "two_object": 0.2, "position": 0.2, "color_attr": 0.15}
_SEED = 43


def _whatever_the_order(d: dict) -> tuple:
    """What a description shares with the one that has its objects swapped."""
    items = tuple(sorted((i["class"], i["count"], i.get("color", "")) for i in d["include"]))
    return items, next((i["position"][0] for i in d["include"] if "position" in i), "")


def _geneval_pools() -> dict[str, list[dict]]:
    """By tag, what is in no test prompt. No single objects: the test set has them all."""
    pools = {}
    for tag in TRAIN_WEIGHTS:
        rest, held_out = split(tag, TEST_PROMPTS["geneval"][tag])
        barred = {_whatever_the_order(d) for d in held_out}
        pools[tag] = [d for d in rest if _whatever_the_order(d) not in barred]
    return pools


def _geneval_train() -> list[dict]:
    pools, rng = _geneval_pools(), np.random.default_rng(_SEED)
    tags = rng.choice(list(TRAIN_WEIGHTS), size=TRAIN_PROMPTS, p=list(TRAIN_WEIGHTS.values()))
    return [pools[tag][int(rng.integers(len(pools[tag])))] for tag in tags]


def _geneval_validation() -> list[dict]:
    rng, sizes = np.random.default_rng([_SEED, 1]), TEST_PROMPTS["geneval"]
    return [pool[i] for tag, pool in _geneval_pools().items() for i in rng.permutation(len(pool))[: sizes[tag]]]


def _global() -> list[dict]:
    """Descriptions of the global set with their `kind`, those of one content side by side."""
    held_out = TEST_PROMPTS["pickscore"]["free"]
    rest = split("free", held_out)[0][TRAIN_PROMPTS + held_out :]  # shuffled
    grounds: dict[str, dict[str, dict]] = {}
    for d in rest:
        grounds.setdefault(str(d["include"]), {})[d.get("background", "local")] = d
    thrice = [found for found in grounds.values() if len(found) == 3][:GLOBAL_PROMPTS]
    matched = [found[kind] | {"kind": kind} for found in thrice for kind in ("local", "dark", "light")]
    several = [
        found["local"] | {"kind": "one_color"}
        for found in grounds.values()
        if found not in thrice and "local" in found and found["local"]["include"][0]["count"] > 1
    ]
    return matched + several[:GLOBAL_PROMPTS]


def _descriptions(task: str, part: str) -> list[dict]:
    if part == "global":
        return _global() if task == "pickscore" else []
    if part == "test":
        return [d for tag, held_out in TEST_PROMPTS[task].items() for d in split(tag, held_out)[1]]
    if task == "geneval":
        return _geneval_train() if part == "train" else _geneval_validation()
    ((tag, held_out),) = TEST_PROMPTS[task].items()
    rest = split(tag, held_out)[0]  # shuffled
    if part == "train":
        return rest[:TRAIN_PROMPTS]
    trained = {d.get("text") for d in rest[:TRAIN_PROMPTS]} if tag == "ocr" else set()
    return [d for d in rest[TRAIN_PROMPTS:] if d.get("text") not in trained][:held_out]


def _core(prompt: str, d: dict) -> tuple[Span, ...]:
    if "text" in d:
        return core.quoted(prompt, d["carrier"])
    return core.content_words(prompt) if d["tag"] == "free" else core.described(prompt, d["include"])


def records(task: str, part: str) -> list[Prompt]:
    """The prompt records of a task; `part` is "train", "validation", "test" or, for pickscore, "global" (others: none)."""
    found = []
    for i, d in enumerate(_descriptions(task, part)):
        prompt, tag = caption(d), d.get("kind", d["tag"])
        metadata = {**d, "tag": tag, "prompt": prompt}
        found.append(Prompt(f"{task}-{i:05d}", task, tag, prompt, _core(prompt, d), metadata))
    return found
