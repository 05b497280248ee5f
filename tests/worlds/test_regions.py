"""The true object mask that is read off a picture against the one it was drawn from."""

import numpy as np
import pytest

from star.worlds.miniature.captions import TAGS, split
from star.worlds.miniature.regions import region
from star.worlds.miniature.scenes import compose, masks, render


@pytest.mark.parametrize("tag", [*TAGS, "ocr", "free"])
def test_region_is_the_union_of_the_drawn_masks(tag: str) -> None:
    rng = np.random.default_rng(0)
    descriptions = split(tag, 0)[0]
    for _ in range(40):
        scene = compose(descriptions[int(rng.integers(len(descriptions)))], rng)
        drawn, found = masks(scene).any(0), region(render(scene))
        assert (drawn & found).sum() / (drawn | found).sum() > 0.85  # a pixel's width of edge is a matter of rounding


def test_an_empty_picture_has_no_region() -> None:
    assert not region(np.full((64, 64, 3), 230, np.uint8)).any()
