"""Prompt sets on which allocation can show what it is worth: what fails there is in the picture, not missing from it. Ours.

`binding`: two objects of two colours; the base draws as many, and gives them wrong shapes or colours. `positions`: the same
with a relation. `small`: only the thin object of two is judged; the other is a distractor. docs/miniature.md has the base's
failures, and what was tried besides. Contents (objects and colours, in whatever order) of one split are in no other.
"""

from collections.abc import Callable

import numpy as np

from star.prompts import core
from star.prompts.record import Prompt
from star.worlds.miniature.captions import caption, descriptions

_SEED = 44
_THIN, _FULL = ("cross", "ring"), ("circle", "square")  # shapes that cover least and most of their box


def _pair(d: dict) -> bool:
    return len(d["include"]) == 2 and "background" not in d


def _thin_beside_full(d: dict) -> bool:
    return _pair(d) and d["include"][1]["class"] in _THIN and d["include"][0]["class"] in _FULL


_SETS: dict[str, tuple[str, Callable[[dict], bool], int]] = {  # tag of the descriptions, which of them, prompts held out
    "binding": ("color_attr", _pair, 40),
    "positions": ("free", _pair, 40),
    "small": ("free", _thin_beside_full, 20),
}
NAMES = tuple(_SETS)


def _content(d: dict) -> tuple:
    return tuple(sorted((item["class"], item["color"]) for item in d["include"]))


def _split(name: str) -> dict[str, list[dict]]:
    """Descriptions by split: for test and validation one a content, for training all of the other contents."""
    tag, kept, held_out = _SETS[name]
    found = [d for d in descriptions(tag) if kept(d)]
    rng = np.random.default_rng([_SEED, *name.encode()])
    by_content: dict[tuple, list[dict]] = {}
    for i in rng.permutation(len(found)):
        by_content.setdefault(_content(found[i]), []).append(found[i])
    contents = list(by_content.values())
    test, validation = ([same[0] for same in contents[k * held_out : (k + 1) * held_out]] for k in range(2))
    return {"test": test, "validation": validation, "train": [d for same in contents[2 * held_out :] for d in same]}


def _judged(d: dict, name: str) -> dict:
    """The description without the object that nobody asks for, which is `beside` the one that is judged."""
    if name != "small":
        return d
    other, thin = d["include"]
    return {**d, "include": [{key: value for key, value in thin.items() if key != "position"}], "beside": other}


def records(name: str, part: str) -> list[Prompt]:
    """The prompt records of a set's split."""
    found = []
    for i, d in enumerate(_split(name)[part]):
        prompt, judged = caption(d), _judged(d, name)
        spans = core.described(prompt, judged["include"])
        found.append(Prompt(f"{name}-{i:05d}", name, d["tag"], prompt, spans, {**judged, "prompt": prompt}))
    return found
