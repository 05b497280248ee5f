"""The analytic detector against the scenes that were drawn (the truth is the scene description, not the detector)."""

import numpy as np
import pytest

from star.pretraining.preference import damage
from star.worlds.miniature.captions import TAGS, descriptions
from star.worlds.miniature.detector import color_of, detect
from star.worlds.miniature.scenes import Object, Scene, compose, masks, render


def _drawn(tag: str, number: int) -> list[Scene]:
    rng = np.random.default_rng([7, *tag.encode()])
    pool = list(descriptions(tag))
    return [compose(pool[int(rng.integers(len(pool)))], rng) for _ in range(number)]


def _found(picture: np.ndarray, threshold: float) -> list[tuple[str, str]]:
    return sorted((d.cls, color_of(picture, d)) for d in detect(picture) if d.score > threshold)


def _truth(scene: Scene) -> list[tuple[str, str]]:
    return sorted((o.shape, o.color) for o in scene.objects)


@pytest.mark.parametrize("tag", TAGS)
def test_a_thousand_rendered_scenes_are_read_right(tag: str) -> None:
    right = 0
    for scene in _drawn(tag, 1000):
        picture = render(scene)
        found = detect(picture)
        # right under both of GenEval's thresholds: nothing lies between 0.3 and 0.9
        clear = all(d.score > 0.9 or d.score < 0.3 for d in found)
        right += clear and sorted((d.cls, color_of(picture, d)) for d in found if d.score > 0.9) == _truth(scene)
    assert right >= 990


def test_dark_and_light_backgrounds_are_read_right() -> None:
    scenes = _drawn("free", 300)
    assert {scene.background < 128 for scene in scenes} == {True, False}
    assert sum(_found(render(s), 0.9) == _truth(s) for s in scenes) >= 297


def test_boxes_and_masks_are_those_of_the_scene() -> None:
    scene = Scene((Object("ring", "blue", 17, 30, 11), Object("square", "red", 47, 33, 10)), 230)
    found = {d.cls: d for d in detect(render(scene))}
    for o, mask in zip(scene.objects, masks(scene), strict=True):
        d = found[o.shape]
        reach = o.r if o.shape == "ring" else 0.88 * o.r
        assert np.allclose(d.box, (o.x - reach, o.y - reach, o.x + reach, o.y + reach), atol=1)
        assert (d.mask & mask).sum() / (d.mask | mask).sum() > 0.9


def test_touching_objects_are_told_apart() -> None:
    for second in ("green", "red"):  # apart by colour, and by a cut
        scene = Scene((Object("circle", "red", 20, 32, 12), Object("circle", second, 43, 32, 12)), 230)
        assert _found(render(scene), 0.3) == sorted([("circle", "red"), ("circle", second)])


def test_damaged_pictures_score_lower_and_never_fail() -> None:
    rng = np.random.default_rng(0)
    scenes = _drawn("color_attr", 100)
    for kind, share in (("blur", 0.7), ("wobble", 0.2), ("shuffle", 0.3), ("noise", 0.3)):  # undamaged: 0.99
        assert np.mean([_found(damage(render(s), kind, 1.0, rng), 0.9) == _truth(s) for s in scenes]) < share
    assert detect(np.full((64, 64, 3), 230, np.uint8)) == []
    nothing = [np.full((64, 64, 3), 255, np.uint8) * np.uint8([1, 0, 0])]
    nothing += [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(20)]
    assert all(d.score < 0.3 for picture in nothing for d in detect(picture))


def test_a_shape_between_two_classes_scores_low() -> None:
    ys, xs = np.mgrid[:64, :64] - 32.0
    scores = {}
    for power in (2, 2.2, 30):  # superellipses: a circle, a rounded blob, a square
        picture = np.full((64, 64, 3), 230, np.uint8)
        picture[abs(xs / 12) ** power + abs(ys / 12) ** power < 1] = (215, 40, 40)
        best = detect(picture)[0]
        scores[power] = (best.cls, best.score)
    assert scores[2][0] == "circle" and scores[30][0] == "square"
    assert min(scores[2][1], scores[30][1]) > 0.9 > scores[2.2][1]
