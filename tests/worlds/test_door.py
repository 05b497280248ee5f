"""What the door promises, held for every world."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from star.config import load
from star.errors import InputError
from star.scoring.rules import select, verdict
from star.worlds.door import NAMES, SPLITS, World, own_detector, world
from star.worlds.miniature.scenes import Object, Scene, compose, masks, render

ROOT = Path(__file__).parents[2]
PROMPTS = load(ROOT / "config/sd35-medium.yaml", ["prompts.ocr=generated"]).prompts
SETS = [(name, prompt_set) for name in NAMES for prompt_set in world(name).sets]


@pytest.mark.parametrize(("name", "prompt_set"), [s for s in SETS if s != ("coco", "pickscore")])  # which has to be fetched
def test_a_sets_prompts_give_its_scorers_what_they_need(name: str, prompt_set: str) -> None:
    origin = world(name)
    needs = {"geneval": "include", "ocr": "text", "pickscore": "prompt"}
    for split in origin.splits(prompt_set):
        prompts = origin.records(prompt_set, split, PROMPTS)
        assert {prompt.task for prompt in prompts} == {prompt_set}
        assert len({prompt.id for prompt in prompts}) == len(prompts)
        for scorer, prompt in itertools.product(origin.judged_by(prompt_set), prompts[:50]):
            assert prompt.metadata[needs[scorer]]
    assert set(SPLITS) <= set(origin.splits(prompt_set))


def test_ids_keep_the_names_that_seed_the_noise() -> None:
    for prompt_set, drawn_as in (("shapes", "geneval"), ("letters", "ocr"), ("preference", "pickscore")):
        first = world("miniature").records(prompt_set, "test", PROMPTS)[0]
        assert (first.id, first.task) == (f"{drawn_as}-00000", prompt_set)


@pytest.mark.parametrize("name", NAMES)
def test_regions_are_known_for_every_picture_or_for_none(name: str) -> None:
    scene = Scene((Object("ring", "blue", 17, 30, 11),), 230)
    found = world(name).regions([render(scene)] * 2)
    assert (found is None) == (world(name).regions([]) is None)
    for region in found or ():
        union = masks(scene).any(0)
        assert region.shape == (64, 64) and region.dtype == bool
        assert (region & union).sum() / (region | union).sum() > 0.85


def test_the_worlds_own_detector_judges_its_pictures() -> None:
    detector = own_detector("miniature")
    assert own_detector("mask2former") is None and own_detector("coco") is None
    assert detector.fingerprint.startswith("miniature@") and "ring" in detector.classes
    for _, picture, metadata in detector.golden:
        (seen,) = detector.detect([picture])
        colors = {id(d): c for d, c in zip(seen, detector.colors_of([(picture, d) for d in seen]), strict=True)}
        assert verdict(select(seen, metadata["tag"]), colors, "golden", metadata).score == 1.0
    rng = np.random.default_rng(5)
    drawn = world("miniature").records("shapes", "test", PROMPTS)[::10]
    found = detector.detect([render(compose(prompt.metadata, rng)) for prompt in drawn])
    for prompt, seen in zip(drawn, found, strict=True):
        assert {d.cls for d in seen} >= {item["class"] for item in prompt.metadata["include"]}


def test_published_files_are_named_where_a_set_has_them() -> None:
    coco: World = world("coco")
    assert [file.name for file in coco.files("pickscore", "validation", PROMPTS)] == ["dataset/pickscore/train.txt"]
    assert not coco.files("ocr", "test", PROMPTS) and not coco.files("geneval", "test", PROMPTS)
    published = PROMPTS.model_copy(update={"ocr": "published"})
    assert [file.name for file in coco.files("ocr", "test", published)] == ["dataset/ocr/test.txt"]
    assert not any(world("miniature").files(s, "train", published) for s in world("miniature").sets)


def test_an_unknown_world_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts\.world: no world `mars`; known are miniature, coco"):
        world("mars")
