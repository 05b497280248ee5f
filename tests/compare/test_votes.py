"""What `star votes` says, against closed forms, published examples and explicit counting."""

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import ballot, data, pictures

from star import cli
from star.compare import page, votes
from star.errors import InputError


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("study")
    folders = pictures(folder / "a", seed=1, prompts=12, images=2), pictures(folder / "b", seed=2, prompts=12, images=2)
    page.write(folders, folder / "page", question="Which?")
    return data(folder / "page/index.html")


def _save(folder: Path, *ballots: dict) -> list[Path]:
    files = [folder / f"votes-{i}.json" for i in range(len(ballots))]
    for file, saved in zip(files, ballots, strict=True):
        file.write_text(json.dumps(saved), encoding="utf-8")
    return files


def _frame(values: list[tuple[str, int, str, str]]) -> pd.DataFrame:
    """Votes from (prompt, sample, judge, preferred)."""
    frame = pd.DataFrame(values, columns=["prompt_id", "sample", "judge", "preferred"])
    return frame.assign(value=frame["preferred"].map({"A": 1.0, "tie": 0.5, "B": 0.0}), tag="t")


def test_win_rate_of_one_vote_a_prompt_is_a_share_with_wilson_s_interval() -> None:
    preferred = ["A"] * 60 + ["tie"] * 20 + ["B"] * 40
    found = votes.win_rate(_frame([(str(i), 0, "x", p) for i, p in enumerate(preferred)]))
    p, n, z = 70 / 120, 120, 1.959963984540054
    assert found["win_rate"] == pytest.approx(p)
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["wilson_low"] == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found["wilson_high"] == pytest.approx((centre + half) / (1 + z**2 / n))
    error = z * np.std([1.0] * 60 + [0.5] * 20 + [0.0] * 40, ddof=1) / math.sqrt(n)
    assert found["low"] == pytest.approx(p - error, abs=0.01) and found["high"] == pytest.approx(p + error, abs=0.01)
    assert (found["a"], found["ties"], found["b"], found["votes"], found["prompts"]) == (60, 20, 40, 120, 120)


def test_more_people_on_the_same_prompts_do_not_feign_more_prompts() -> None:
    rng = np.random.default_rng(0)
    one = [(str(i), 0, "x", str(rng.choice(["A", "tie", "B"]))) for i in range(40)]
    ten = [(prompt, 0, f"judge{j}", choice) for prompt, _, _, choice in one for j in range(10)]
    narrow, wide = votes.win_rate(_frame(ten)), votes.win_rate(_frame(one))
    for key in ("win_rate", "low", "high", "wilson_low", "wilson_high"):
        assert narrow[key] == pytest.approx(wide[key]), key
    uneven = [("p", 0, "x", "A"), ("p", 1, "x", "A"), ("p", 2, "x", "A"), ("q", 0, "x", "B")]
    assert votes.win_rate(_frame(uneven))["win_rate"] == 0.5


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, missing values; nominal alpha 0.743."""
    observers = ["123321412***", "1233224125*3", "*3332342251*", "12332441251*"]
    units = [[value for value in unit if value != "*"] for unit in zip(*observers, strict=True)]
    assert votes.krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def _alpha_by_counting(units: list[list[str]]) -> float:
    paired = [unit for unit in units if len(unit) > 1]
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in paired)
    values = [vote for unit in paired for vote in unit]
    expected = sum(a != b for a, b in permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def test_alpha_and_raw_agreement_are_what_counting_gives() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        units = [rng.choice(["A", "tie", "B"], size=rng.integers(1, 5), p=[0.5, 0.2, 0.3]).tolist() for _ in range(15)]
        assert votes.krippendorff_alpha(units) == pytest.approx(_alpha_by_counting(units))
    assert votes.raw_agreement([["A", "A", "B"], ["tie"], ["B", "B"]]) == pytest.approx(2 / 4)
    assert math.isnan(votes.raw_agreement([["A"]])) and math.isnan(votes.krippendorff_alpha([["A"], ["B"]]))
    assert math.isnan(votes.krippendorff_alpha([["A", "A"], ["A", "A"]]))
    assert votes.krippendorff_alpha([["A", "A"], ["B", "B"]]) == 1


def test_saved_votes_come_back_as_preferences_and_tables(study: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    everything = len(study["items"])
    colors = [item["tag"] == "colors" for item in study["items"]]
    first = ["A" if is_color else "B" for is_color in colors]
    second = ["A" if is_color else "tie" for is_color in colors]
    third = [*first[:5], *[None] * (everything - 5)]
    files = _save(
        tmp_path, *(ballot(study, name, choices) for name, choices in zip("xyz", (first, second, third), strict=True))
    )
    assert cli.main(["votes", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "out/votes.md").read_text(encoding="utf-8")
    assert f"3 people, {2 * everything + 5} votes on {everything} pairs of 12 prompts" in text
    assert f"2 of 3 finished. Votes of the others count as far as they go: `z` 5 of {everything}." in text
    table = pd.read_csv(tmp_path / "out/votes.csv").set_index("tag")
    assert list(table.index) == ["all", "colors", "counting", "position"]
    assert table.loc["colors", "win_rate"] == 1 and table.loc["colors", "b"] == 0
    assert 0 <= table.loc["position", "win_rate"] <= 0.25
    people = pd.read_csv(tmp_path / "out/people.csv").set_index("judge")
    assert people.loc["y", "ties"] == pytest.approx(2 / 3) and people.loc["z", "votes"] == 5
    assert people.loc["x", "seconds"] == 1.5
    sides = [side for side, choice in zip(study["key"]["a_side"], second, strict=True) if choice == "A"]
    assert people.loc["y", "left"] == pytest.approx(sides.count("left") / len(sides))


def _scores(path: Path, study: dict, of: dict[tuple[str, int], float], scorer: str = "s", own_ids: bool = False) -> Path:
    rows = []
    for item in study["items"]:
        key = (item["prompt_id"], item["picture"])
        name = item["prompt_id"].replace("shapes", "geneval") if own_ids else item["prompt_id"]
        row = {"prompt_id": name, "sample": key[1], "tag": item["tag"], "prompt": item["prompt"]}
        rows.append(row | {"filename": "x", "scorer": scorer, "score": of[key]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("own_ids", [False, True])
def test_scores_stand_beside_the_votes_on_the_same_pictures(study: dict, tmp_path: Path, own_ids: bool) -> None:
    keys = [(item["prompt_id"], item["picture"]) for item in study["items"]]
    rng = np.random.default_rng(2)
    a, b = ({key: float(rng.normal()) for key in keys} for _ in range(2))
    judged = 15
    choices = ["A" if a[key] > b[key] else "B" for key in keys[:judged]]
    choices[0] = "tie"
    choices[1:4] = [{"A": "B", "B": "A"}[choice] for choice in choices[1:4]]
    files = _save(tmp_path, ballot(study, "x", [*choices, *[None] * (len(keys) - judged)]))
    paths = [
        _scores(tmp_path / f"{name}.jsonl", study, of, own_ids=own_ids and name == "b") for name, of in (("a", a), ("b", b))
    ]
    votes.report(files, paths, tmp_path / "out")
    total = pd.read_csv(tmp_path / "out/votes.csv").iloc[0]
    by_prompt = pd.DataFrame({"prompt": [k[0] for k in keys[:judged]], "d": [a[k] - b[k] for k in keys[:judged]]})
    assert total["difference"] == pytest.approx(by_prompt.groupby("prompt")["d"].mean().mean())
    assert total["difference"] == pytest.approx(total["score_a"] - total["score_b"])
    assert total["difference_low"] < total["difference"] < total["difference_high"]
    assert total["same_choice"] == pytest.approx(11 / 14)


def test_what_cannot_be_counted_is_refused_in_one_line(study: dict, tmp_path: Path) -> None:
    everything = len(study["items"])
    good = ballot(study, "x", ["A"] * everything)
    other = ballot(study | {"comparison": "0123"}, "y", ["A"] * everything)
    edited = ballot(study, "y", ["A"] * everything)
    edited["votes"][0]["a_side"] = {"left": "right", "right": "left"}[edited["votes"][0]["a_side"]]
    broken = ballot(study, "y", ["A"] * everything)
    broken["votes"][3]["vote"] = "both"
    for second, words in (
        (other, "different comparisons"),
        (edited, "a file was edited"),
        (good, "the same person"),
        (broken, "votes.3.vote"),
        ({"a": 1}, "Field required"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            votes.read(_save(tmp_path, good, second))
        assert "\n" not in str(refused.value) and "votes-1.json" in str(refused.value)
    with pytest.raises(InputError, match="no votes in it"):
        votes.read(_save(tmp_path, ballot(study, "x", [None] * everything)))
    with pytest.raises(InputError, match="no such file"):
        votes.read([tmp_path / "none.json"])
    (tmp_path / "text.json").write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match=r"text.json: file: Invalid JSON"):
        votes.read([tmp_path / "text.json"])

    keys = {(item["prompt_id"], item["picture"]): 0.0 for item in study["items"]}
    files = _save(tmp_path, good)
    paths = [_scores(tmp_path / "a.jsonl", study, keys), _scores(tmp_path / "b.jsonl", study, keys, scorer="t")]
    with pytest.raises(InputError, match="different scorers"):
        votes.report(files, paths, None)
    lacking = study | {"items": [item for item in study["items"] if item["picture"] == 0]}
    with pytest.raises(InputError, match=r"b.jsonl: no score of .*, picture 1"):
        votes.report(files, [paths[0], _scores(tmp_path / "b.jsonl", lacking, keys)], None)


def test_the_first_line_says_what_is_shown(study: dict, tmp_path: Path) -> None:
    everything = len(study["items"])
    said = {}
    for choice in ("A", "B", "tie"):
        said[choice] = votes.report(_save(tmp_path, ballot(study, "x", [choice] * everything)), None, None).splitlines()[2]
    assert said["A"].startswith("A wins 100.0%") and "people prefer A." in said["A"]
    sure = votes.report(_save(tmp_path, ballot(study, "x", ["A"] * everything)), None, None)
    narrow = votes.report(
        _save(tmp_path, ballot(study, "x", [("A", "tie")[item["picture"]] for item in study["items"]])), None, None
    )
    assert "Wilson's interval holds" not in sure and "people prefer A" in narrow and "Wilson's interval holds" in narrow
    assert "people prefer B." in said["B"] and "no preference is shown." in said["tie"]
