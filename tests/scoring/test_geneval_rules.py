"""GenEval's rules on hand-made detections, every branch; expected values are computed by hand from the published rules."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from records import asked
from scorer_settings import scorers

from star.errors import InputError
from star.scoring.rules import failure, judge, overall, relations, select, soft_reward
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import TAGS, caption, descriptions
from star.worlds.miniature.scenes import compose, render


class D(NamedTuple):
    cls: str
    box: tuple
    score: float = 0.95
    color: str = "red"
    mask: None = None


def color(d: D) -> str:
    return d.color


LEFT, RIGHT, LOW = (0, 0, 20, 20), (40, 0, 60, 20), (0, 40, 20, 60)


def _item(cls: str, count: int = 1, **more: object) -> dict:
    return {"class": cls, "count": count, **more}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (LEFT, RIGHT, {"left of"}),  # offset -40, minus 0.1 * (20 + 20): -36 / 40 = -0.9
        (RIGHT, LEFT, {"right of"}),
        (LEFT, LOW, {"above"}),
        (LOW, LEFT, {"below"}),
        (LEFT, (40, 40, 60, 60), {"left of", "above"}),  # (-36, -36) / 56.57 = -0.64 each
        ((30, 30, 50, 50), LEFT, {"right of", "below"}),  # (26, 26) / 42.43 = 0.61
        (LEFT, (4, 0, 24, 20), set()),  # offset 4 does not exceed 0.1 * 40
        (LEFT, LEFT, set()),
        (LEFT, (7, 0, 27, 20), set()),  # (7 - 4) / 7 = 0.43
        (LEFT, (9, 0, 29, 20), {"left of"}),  # (9 - 4) / 9 = 0.56
        ((0, 0, 100, 10), (60, 0, 160, 10), {"left of"}),  # widths add up: (60 - 20) / 60 = 0.67
    ],
)
def test_relations(a: tuple, b: tuple, expected: set) -> None:
    assert relations(a, b) == expected


def test_select_thresholds_order_and_limit() -> None:
    seen = [D("circle", LEFT, s) for s in (0.2, 0.3, 0.31, 0.9, 0.91)] + [D("ring", LEFT, 0.95)]
    assert [d.score for d in select(seen, "colors")["circle"]] == [0.91, 0.9, 0.31]
    assert {c: [d.score for d in v] for c, v in select(seen, "counting").items()} == {"ring": [0.95], "circle": [0.91]}
    many = select([D("circle", LEFT, 0.5 + i / 100) for i in range(20)], "colors")["circle"]
    assert len(many) == 16 and many[-1].score == pytest.approx(0.54)


@pytest.mark.parametrize("scores", [[0.5, 0.5], [0.5, 0.7, 0.5, 0.7, 0.5], [0.9] * 16])
def test_equal_scores_are_in_the_official_order(scores: list[float]) -> None:
    """The evaluator's `np.argsort(scores)[::-1]`, whose sort keeps the order of so few equal ones."""
    seen = [D("dog", (i, 0, i + 1, 1), s) for i, s in enumerate(scores)]
    official = np.argsort(np.array(scores), kind="stable")[::-1].tolist()
    assert [d.box[0] for d in select(seen, "colors")["dog"]] == official


def _verdict(seen: list[D], metadata: dict) -> tuple[bool, str, float]:
    found = select(seen, metadata.get("tag", "two_object"))
    return (*judge(found, color, metadata), soft_reward(found, color, metadata))


def test_count_and_exclude() -> None:
    metadata = {"tag": "counting", "include": [_item("circle", 2)], "exclude": [_item("circle", 3)]}
    circles = [D("circle", LEFT), D("circle", RIGHT), D("circle", LOW), D("circle", (40, 40, 60, 60))]
    assert _verdict([], metadata) == (False, "expected circle>=2, found 0", 0.0)
    assert _verdict(circles[:1], metadata) == (False, "expected circle>=2, found 1", 0.5)
    assert _verdict(circles[:2], metadata) == (True, "", 1.0)
    assert _verdict(circles[:3], metadata) == (False, "expected circle<3, found 3", 0.5)
    assert _verdict(circles[:4], metadata) == (False, "expected circle<3, found 4", 0.0)
    assert _verdict([*circles, D("circle", LEFT)], metadata)[2] == 0.0  # 1 - 3/2 is clipped
    assert _verdict([circles[0], D("circle", RIGHT, 0.8)], metadata)[:2] == (False, "expected circle>=2, found 1")


def test_color() -> None:
    metadata = {"include": [_item("circle", 2, color="blue")]}
    blue, red = D("circle", LEFT, color="blue"), D("circle", RIGHT, color="red")
    assert _verdict([blue, blue], metadata) == (True, "", 1.0)
    assert _verdict([blue, red], metadata) == (False, "expected blue circle>=2, found 1 blue, 1 red", 0.75)
    assert _verdict([blue], metadata) == (False, "expected circle>=2, found 1", 0.25)  # parts 0.5 and 0
    # the official rule looks at the best `count` only; the soft reward has no colour part when there are too many
    assert _verdict([blue, blue, red._replace(score=0.9)], metadata) == (True, "", 0.25)
    worse = [red, *(d._replace(score=0.5) for d in (blue, blue))]
    assert _verdict(worse, metadata)[:2] == (False, "expected blue circle>=2, found 1 blue, 1 red")


def test_position() -> None:
    metadata = {"include": [_item("ring"), _item("circle", position=["left of", 0])]}
    ring, circle = D("ring", RIGHT), D("circle", LEFT)
    assert _verdict([ring, circle], metadata) == (True, "", 1.0)
    swapped = [D("ring", LEFT), D("circle", RIGHT)]
    assert _verdict(swapped, metadata) == (False, "expected circle left of target, found right of target", pytest.approx(2 / 3))
    no_target = "expected ring>=1, found 0\nno target for circle to be left of"
    assert _verdict([circle], metadata) == (False, no_target, pytest.approx(1 / 3))
    assert _verdict([ring], metadata) == (False, "expected circle>=1, found 0", pytest.approx(1 / 3))
    # two rings: the target count is wrong for the soft reward, the official rule takes the best ring
    assert _verdict([ring, D("ring", LOW, 0.5), circle], metadata) == (True, "", pytest.approx(1 / 3))


def test_position_must_hold_for_every_pair() -> None:
    metadata = {"include": [_item("ring", 2), _item("circle", position=["left of", 0])]}
    circle = D("circle", (20, 0, 40, 20))
    right, left = D("ring", (60, 0, 80, 20)), D("ring", (0, 0, 10, 20))
    assert _verdict([right, right, circle], metadata) == (True, "", 1.0)
    correct, reason, soft = _verdict([right, left, circle], metadata)
    assert (correct, reason) == (False, "expected circle left of target, found right of target")
    assert soft == pytest.approx((1 + 1 + 0.5) / 3)


def test_position_with_color_needs_both() -> None:
    metadata = {"include": [_item("ring", color="green"), _item("circle", color="red", position=["above", 0])]}
    ring, circle = D("ring", LOW, color="green"), D("circle", LEFT, color="red")
    assert _verdict([ring, circle], metadata) == (True, "", 1.0)
    correct, reason, soft = _verdict([ring._replace(color="blue"), circle], metadata)
    assert reason == "expected green ring>=1, found 1 blue\nno target for circle to be above"
    assert (correct, soft) == (False, pytest.approx(4 / 5))
    assert _verdict([ring, circle._replace(color="blue")], metadata)[:2] == (False, "expected red circle>=1, found 1 blue")


def test_a_failure_is_the_first_kind_that_holds() -> None:
    circle, ring = D("circle", LEFT), D("ring", RIGHT)
    beside = {
        "include": [_item("ring", color="red"), _item("circle", position=["left of", 0])],
        "exclude": [_item("circle", 2)],
    }
    cases = {
        "": [ring, circle],
        "absent": [ring._replace(color="blue")],  # and the ring has the wrong colour
        "surplus": [ring._replace(color="blue"), circle, circle],
        "color": [ring._replace(color="blue"), circle],  # and no target to be left of
        "position": [ring._replace(box=LOW), circle],
    }
    assert {failure(_verdict(seen, beside)[1]) for seen in ([circle], [])} == {"absent"}
    assert {kind: failure(_verdict(seen, beside)[1]) for kind, seen in cases.items()} == {kind: kind for kind in cases}


def test_overall_is_the_unweighted_mean_of_tags() -> None:
    assert overall({"single_object": 1.0, "counting": 0.25, "position": 0.1}) == pytest.approx(0.45)


def test_scorer_on_drawn_scenes_and_its_official_keys() -> None:
    scorer = make_scorer("geneval", scorers(geneval_detector="miniature"))
    rng = np.random.default_rng(3)
    right, wrong = [], []
    for tag in TAGS:
        pool = list(descriptions(tag))
        for _ in range(20):
            d = pool[int(rng.integers(len(pool)))]
            record = asked(caption(d), d)
            picture = render(compose(d, rng))
            right += scorer([picture], [record])
            wrong += scorer([np.full_like(picture, 230)], [record])
    assert np.mean([line.score for line in right]) >= 0.99
    assert np.mean([line.reward for line in right]) >= 0.99
    assert {line.score for line in wrong} == {line.reward for line in wrong} == {0.0}
    line = right[-1].findings
    metadata, details = json.loads(line["metadata"]), json.loads(line["details"])
    assert list(metadata) == ["tag", "include", "prompt"] and metadata["tag"] == "color_attr"
    assert line["correct"] is True and line["reason"] == ""
    assert all(len(box) == 5 for boxes in details.values() for box in boxes)
    assert "miniature@" in scorer.fingerprint


def test_bad_input_names_what_is_wrong(tmp_path: Path) -> None:
    scorer = make_scorer("geneval", scorers(geneval_detector="miniature"))
    with pytest.raises(InputError, match=r"a red thing.*include"):
        scorer([np.zeros((64, 64, 3), np.uint8)], [asked("a red thing", {"tag": "colors"})])
    for name in ("unicorn", "Circle"):
        with pytest.raises(InputError, match=f"four of them.*no class '{name}' to detect"):
            scorer.check([asked("four of them", {"tag": "counting", "include": [_item(name, 4)]})])
    with pytest.raises(InputError, match=r"scorers\.geneval\.model: no folder .*nothing"):
        make_scorer("geneval", scorers(geneval_detector="mask2former", geneval_model=str(tmp_path / "nothing")))
