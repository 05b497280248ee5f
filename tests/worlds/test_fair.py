"""Prompt sets of the fair field: splits without a content in common, what is judged, and where."""

import numpy as np
import pytest

from star.config import Prompts
from star.scoring.rules import select, verdict
from star.worlds.door import SPLITS, world
from star.worlds.miniature.fair import NAMES
from star.worlds.miniature.scenes import Object, Scene, masks, render

MINIATURE, PROMPTS = world("miniature"), Prompts(world="miniature")
SIZES = {"binding": (240, 40, 40), "positions": (960, 40, 40), "small": (160, 20, 20)}


def _content(metadata: dict) -> frozenset:
    items = [*metadata["include"], *([metadata["beside"]] if "beside" in metadata else [])]
    return frozenset((item["class"], item["color"]) for item in items)


@pytest.mark.parametrize("name", NAMES)
def test_splits_have_no_content_in_common(name: str) -> None:
    found = {split: MINIATURE.records(name, split, PROMPTS) for split in SPLITS}
    assert tuple(len(found[split]) for split in ("train", "validation", "test")) == SIZES[name]
    contents = {split: {_content(record.metadata) for record in records} for split, records in found.items()}
    assert not contents["train"] & contents["test"] and not contents["train"] & contents["validation"]
    assert not contents["validation"] & contents["test"]
    for records in found.values():
        assert len({record.text for record in records}) == len(records)
        assert all(record.core for record in records)


def test_the_object_beside_is_neither_judged_nor_core_nor_in_the_region() -> None:
    record = next(r for r in MINIATURE.records("small", "train", PROMPTS) if "left of" in r.text)
    (judged,), beside = record.metadata["include"], record.metadata["beside"]
    assert {span.text for span in record.core} == {judged["class"], judged["color"]}
    assert f"{beside['color']} {beside['class']}" in record.text
    detector = MINIATURE.detector()

    def scored(scene: Scene) -> float:
        picture = render(scene)
        (seen,) = detector.detect([picture])
        colors = {id(d): c for d, c in zip(seen, detector.colors_of([(picture, d) for d in seen]), strict=True)}
        return verdict(select(seen, record.metadata["tag"]), colors, record.text, record.metadata).score

    thin = Object(judged["class"], judged["color"], 17.0, 32.0, 11.0)
    full = Object(beside["class"], beside["color"], 47.0, 32.0, 11.0)
    assert scored(Scene((thin, full), 230)) == scored(Scene((thin,), 230)) == 1.0
    assert scored(Scene((full,), 230)) == 0.0
    (own,), (every,) = (
        MINIATURE.regions([render(Scene((thin, full), 230))], [record]),
        MINIATURE.regions([render(Scene((thin, full), 230))]),
    )
    of_thin, of_full = masks(Scene((thin, full), 230))
    assert (own & of_thin).sum() > 0.8 * of_thin.sum() and not (own & of_full).any() and (every & of_full).any()
    (without,) = MINIATURE.regions([render(Scene((full,), 230))], [record])  # where the judged one is missing: what is there
    assert np.array_equal(without, MINIATURE.regions([render(Scene((full,), 230))])[0])
