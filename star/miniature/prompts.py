"""The miniature's prompt records: the vocabulary behind the `miniature` world of star.prompts.

Test sets are those of star.miniature.captions. GenEval's training set is drawn with the weights of Flow-GRPO's (arXiv
2505.05470) from what the test set does not hold, also not with its two objects swapped; sizes are ours.
"""

import numpy as np

from star.miniature.captions import TEST_PROMPTS, caption, split
from star.prompts import core

TRAIN_PROMPTS = 1000
TRAIN_WEIGHTS = {"position": 0.7, "counting": 0.5, "color_attr": 0.3, "colors": 0.1, "two_object": 0.1}
_SEED = 43


def _whatever_the_order(d: dict) -> tuple:
    """What a description shares with the one that has its objects swapped."""
    items = tuple(sorted((i["class"], i["count"], i.get("color", "")) for i in d["include"]))
    return items, next((i["position"][0] for i in d["include"] if "position" in i), "")


def _geneval_train() -> list[dict]:
    pools = {}
    for tag in TRAIN_WEIGHTS:
        rest, held_out = split(tag, TEST_PROMPTS["geneval"][tag])
        barred = {_whatever_the_order(d) for d in held_out}
        pools[tag] = [d for d in rest if _whatever_the_order(d) not in barred]
    rng = np.random.default_rng(_SEED)
    weights = np.array(list(TRAIN_WEIGHTS.values()))
    tags = rng.choice(list(TRAIN_WEIGHTS), size=TRAIN_PROMPTS, p=weights / weights.sum())
    return [pools[tag][int(rng.integers(len(pools[tag])))] for tag in tags]


def _descriptions(task: str, part: str) -> list[dict]:
    if part == "test":
        return [d for tag, held_out in TEST_PROMPTS[task].items() for d in split(tag, held_out)[1]]
    if task == "geneval":
        return _geneval_train()
    ((tag, held_out),) = TEST_PROMPTS[task].items()
    return split(tag, held_out)[0][:TRAIN_PROMPTS]  # `split` has shuffled them


def _core(prompt: str, d: dict) -> list[dict]:
    if "text" in d:
        return core.quoted(prompt, d["carrier"])
    return core.content_words(prompt) if d["tag"] == "free" else core.described(prompt, d["include"])


def records(task: str, part: str) -> list[dict]:
    """The prompt records of a task; `part` is "train" or "test"."""
    found = []
    for i, d in enumerate(_descriptions(task, part)):
        prompt = caption(d)
        found.append(
            {
                "id": f"{task}-{i:05d}",
                "task": task,
                "tag": d["tag"],
                "prompt": prompt,
                "core": _core(prompt, d),
                "metadata": {**d, "prompt": prompt},
            }
        )
    return found
