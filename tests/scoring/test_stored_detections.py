"""Stored detections judged again: properties over a thousand random ones, the official format, and what is refused."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from star import cli
from star.errors import InputError
from star.scoring.stored import rescore

COLORS = ("red", "orange")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _draw(rng: np.random.Generator) -> tuple[dict, dict, dict]:
    """Metadata of one of the six kinds of prompts over few classes, and random detections that often satisfy it."""
    tag = str(rng.choice(["single_object", "two_object", "counting", "colors", "position", "color_attr"]))
    a, b = rng.choice(["dog", "cat", "bear"], 2, replace=False).tolist()
    include = [{"class": a, "count": int(rng.integers(2, 5)) if tag == "counting" else 1}]
    if tag in ("two_object", "position", "color_attr"):
        include.append({"class": b, "count": 1})
    for item in include if tag.startswith("color") else []:
        item["color"] = str(rng.choice(COLORS))
    if tag == "position":
        include[1]["position"] = [str(rng.choice(list(OPPOSITE))), 0]
    metadata = {"tag": tag, "include": include, "prompt": f"{tag} of {a} and {b} {rng.integers(10**9)}"}
    if tag == "counting":
        metadata["exclude"] = [{"class": a, "count": include[0]["count"] + 1}]
    details = {}
    for cls in ("dog", "cat", "bear"):
        n = int(rng.choice([0, 1, 2, 4, 18], p=[0.15, 0.4, 0.3, 0.12, 0.03]))
        corners = rng.uniform(0, 400, (n, 2))
        scores = np.clip(rng.normal(0.93, 0.2, (n, 1)), 0.01, 1) - rng.uniform(0, 1e-3, (n, 1))  # all different
        details[cls] = np.hstack([corners, corners + rng.uniform(1, 200, (n, 2)), scores]).tolist()
    return metadata, details, {cls: rng.choice(COLORS, len(boxes)).tolist() for cls, boxes in details.items()}


def _oracle(metadata: dict, details: dict, colors: dict) -> bool:
    """GenEval's verdict, written from the published rules."""
    above = 0.9 if metadata["tag"] == "counting" else 0.3
    seen = {}
    for cls, boxes in details.items():
        both = sorted(zip(boxes, colors[cls], strict=True), key=lambda x: x[0][4], reverse=True)
        seen[cls] = [(box, color) for box, color in both if box[4] > above][:16]
    matched: list = []
    for item in metadata["include"]:
        taken = seen[item["class"]][: item["count"]]
        fine = len(taken) == item["count"] and ("color" not in item or all(color == item["color"] for _, color in taken))
        if fine and "position" in item:
            relation, target = item["position"]
            fine = bool(matched[target])
            for o, _ in taken:
                for t, _ in matched[target] or []:
                    ox, oy = (o[0] + o[2] - t[0] - t[2]) / 2, (o[1] + o[3] - t[1] - t[3]) / 2
                    x = math.copysign(max(abs(ox) - 0.1 * (o[2] - o[0] + t[2] - t[0]), 0), ox)
                    y = math.copysign(max(abs(oy) - 0.1 * (o[3] - o[1] + t[3] - t[1]), 0), oy)
                    far = max(abs(x), abs(y)) >= 1e-3
                    along = {"left of": -x, "right of": x, "above": -y, "below": y}[relation]
                    fine = fine and far and along / math.hypot(ox, oy) > 0.5
        matched.append(taken if fine else None)
    return all(matched) and all(len(seen[item["class"]]) < item["count"] for item in metadata.get("exclude", []))


def _write(cases: list[tuple], file: Path) -> Path:
    lines = []
    for number, (metadata, details, colors) in enumerate(cases):
        name = f"out/{number:05d}/samples/0000.png"
        parts = {"metadata": metadata, "details": details, "colors": colors}
        lines.append(
            {"filename": name, "tag": metadata["tag"], "correct": False} | {k: json.dumps(v) for k, v in parts.items()}
        )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_thousand_random_detections(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    cases = [_draw(rng) for _ in range(1000)]

    def judged(changed: list[tuple]) -> list[tuple]:
        rescore(_write(changed, tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        return [(line["correct"], line["reward"]) for line in lines]

    base = judged(cases)
    assert [correct for correct, _ in base] == [_oracle(*case) for case in cases]
    assert all(0 <= reward <= 1 for _, reward in base)
    for tag in ("single_object", "two_object", "counting", "colors", "position", "color_attr"):
        assert {correct for (correct, _), (m, *_) in zip(base, cases, strict=True) if m["tag"] == tag} == {True, False}

    zebra = ({"zebra": [[0, 0, 9, 9, 0.95]] * 3}, {"zebra": ["red"] * 3})
    added = [(m, d | zebra[0], c | zebra[1]) for m, d, c in cases]
    assert judged(added) == base
    forbidden = [(m | {"exclude": [*m.get("exclude", []), {"class": "zebra", "count": 3}]}, d, c) for m, d, c in added]
    assert judged(forbidden) == [(False, reward) for _, reward in base]
    allowed = [(m | {"exclude": [*m.get("exclude", []), {"class": "zebra", "count": 4}]}, d, c) for m, d, c in added]
    assert judged(allowed) == base

    shuffled = []
    for m, d, c in cases:
        order = {cls: rng.permutation(len(boxes)).tolist() for cls, boxes in d.items()}
        names = rng.permutation(list(d)).tolist()
        shuffled.append((m, *({cls: [x[cls][i] for i in order[cls]] for cls in names} for x in (d, c))))
    assert judged(shuffled) == base

    mirrored = []
    for m, d, c in cases:
        turned = json.loads(json.dumps(m))
        for item in turned["include"]:
            if "position" in item:
                item["position"][0] = OPPOSITE[item["position"][0]]
        mirrored.append((turned, {cls: [[-b[2], -b[3], -b[0], -b[1], b[4]] for b in boxes] for cls, boxes in d.items()}, c))
    assert judged(mirrored) == base

    swapped = []  # "A, and B above A" says what "B, and A below B" says where one of each is seen
    for m, d, c in cases:
        first, *rest = json.loads(json.dumps(m["include"]))
        if rest and "position" in rest[0]:
            first["position"] = [OPPOSITE[rest[0].pop("position")[0]], 0]
        swapped.append((m | {"include": [*rest, first]}, d, c))
    assert [correct for correct, _ in judged(swapped)] == [correct for correct, _ in base]

    fewer = [(m, {cls: [b for b in boxes if b[4] > 0.3] for cls, boxes in d.items()}, c) for m, d, c in cases]
    fewer = [
        (m, d, {cls: [x for x, b in zip(c[cls], o[cls], strict=True) if b[4] > 0.3] for cls in c})
        for (m, d, c), (_, o, _) in zip(fewer, cases, strict=True)
    ]
    assert judged(fewer) == base  # what the official evaluator has already left out


RED_DOG = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"}
DOG = {"dog": [[0.0, 0.0, 9.0, 9.0, 0.8]]}


def test_the_official_format_without_colors(tmp_path: Path) -> None:
    plain = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
    line = {"filename": "/far/away/00012/samples/00003.png", "metadata": json.dumps(plain), "details": json.dumps(DOG)}
    two = RED_DOG | {"include": [RED_DOG["include"][0] | {"count": 2}]}
    fewer = line | {"filename": "/far/away/00013/samples/0000.png", "metadata": json.dumps(two)}
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(fewer) + "\n")  # too few dogs: nobody asks for their colour
    result = rescore(file, tmp_path / "out.jsonl")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["reason"], second["reason"]) == ("", "expected dog>=2, found 1") and result["tags"] == {
        "single_object": 1,
        "colors": 0,
    }
    assert (first["prompt_id"], first["sample"], first["filename"]) == ("geneval-00012", 3, line["filename"])
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] in first["scorer"]
    assert result["prompts"] == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colors": None}, r"in\.jsonl:1: 'a photo of a red dog' needs the colour of a dog; add `colors`"),
        ({"colors": '{"dog": [null]}'}, "needs the colour of a dog"),
        ({"colors": '{"dog": ["red", "red"]}'}, "`colors` has 2 of dog, `details` has 1"),
        ({"details": '{"dog": [[0, 0, 9, 9, NaN]]}'}, "not five finite numbers"),
        ({"details": '{"dog": [[0, 0, 9, 9]]}'}, "not five finite numbers"),
        ({"details": DOG}, "not a result line of GenEval"),
        ({"metadata": '{"tag": "colors", "prompt": "a dog"}'}, "'a dog': its metadata needs"),
        ({"metadata": json.dumps(RED_DOG | {"tag": "beauty"})}, r"its metadata needs GenEval's `tag` \(single_object"),
        ({"metadata": json.dumps(RED_DOG).replace('"red"', '"crimson"')}, "the colour 'crimson', which no object can have"),
        ({"metadata": json.dumps(RED_DOG).replace('"color": "red"', '"position": ["on", 0]')}, r"the position \['on', 0\]"),
        ({"metadata": json.dumps(RED_DOG).replace('"color": "red"', '"position": ["above", 0]')}, "an earlier item's number"),
        ({"metadata": '{"include": []}'}, "not a result line of GenEval"),
        ({"filename": "dog.png"}, r"'dog\.png' is not \.\.\./00000/samples/0000\.png"),
        ({"metadata": json.dumps(RED_DOG).replace('"dog"', '"Dog"')}, r"in\.jsonl:1: .*no class 'Dog' to detect"),
        ({"metadata": json.dumps(RED_DOG).replace('"count": 1', '"count": "1"')}, r"`metadata\.include\[0\]\.count` is '1'"),
        (
            {"metadata": json.dumps(RED_DOG).replace('"color": "red"', '"position": "above"')},
            r"`metadata\.include\[0\]\.position` is 'above'",
        ),
        (None, r"0000\.png was already in .*in\.jsonl:1"),
        ({"filename": "/of/another/run/00000/samples/0000.png"}, r"picture 0 of geneval-00000 is in .*in\.jsonl:1 too"),
        (
            {"filename": "/other/00000/samples/0001.png", "metadata": json.dumps(RED_DOG | {"prompt": "a red dog"})},
            r"in\.jsonl:2: geneval-00000 is 'a red dog' here and 'a photo of a red dog' in .*in\.jsonl:1, of another run",
        ),
        ({"filename": "00000/samples/0001.png", "scorer": "other"}, "lines of different scorers"),
    ],
)
def test_bad_stored_detections_are_named(change: dict | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = {"filename": "00000/samples/0000.png", "metadata": json.dumps(RED_DOG), "details": json.dumps(DOG)}
    good["colors"] = '{"dog": ["red"]}'
    joined = change is None or ("filename" in change and "samples" in change["filename"])
    lines = [good, good | (change or {})] if joined else [good | change]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=says):
        rescore(file, out)
    assert cli.main(["score", "--scorer", "geneval", "--detections", str(file), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_arrays_and_what_windows_writes_are_taken(tmp_path: Path) -> None:
    line = {"filename": r"C:\out\00007\samples\0002.png", "metadata": json.dumps(RED_DOG), "details": json.dumps(DOG)}
    lines = [
        line | {"colors": '{"dog": ["red"]}'},
        line | {"filename": "/x/00007/samples/0003.png", "colors": '{"dog": ["red"]}'},
    ]
    file, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    file.write_text("\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    rescore(file, out)
    first = [json.loads(row) for row in out.read_text().splitlines()]
    assert [(row["prompt_id"], row["sample"], row["correct"]) for row in first] == [
        ("geneval-00007", 2, True),
        ("geneval-00007", 3, True),
    ]
    file.write_text(json.dumps(lines))
    rescore(file, out)
    again = [json.loads(row) for row in out.read_text().splitlines()]
    assert [row | {"scorer": None} for row in again] == [row | {"scorer": None} for row in first]


def test_a_class_that_occurs_in_the_file_is_known(tmp_path: Path) -> None:
    """A detector of other labels may have written it."""
    griffin = {"tag": "single_object", "include": [{"class": "griffin", "count": 1}], "prompt": "a photo of a griffin"}
    line = {"filename": "00000/samples/0000.png", "metadata": json.dumps(griffin), "details": "{}"}
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(InputError, match="no class 'griffin'"):
        rescore(file, tmp_path / "out.jsonl")
    seen = line | {"filename": "00000/samples/0001.png", "details": '{"griffin": [[0, 0, 9, 9, 0.1]]}'}
    file.write_text(json.dumps(line) + "\n" + json.dumps(seen))
    assert rescore(file, tmp_path / "out.jsonl")["mean"] == 0.0


def test_equal_scores_keep_the_order_of_details(tmp_path: Path) -> None:
    two = RED_DOG | {"include": [RED_DOG["include"][0]]}
    details, colors = {"dog": [[0, 0, 9, 9, 0.8], [20, 0, 29, 9, 0.8]]}, {"dog": ["red", "blue"]}
    line = {"filename": "00000/samples/0000.png", "metadata": json.dumps(two)}
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps(line | {"details": json.dumps(details), "colors": json.dumps(colors)}))
    rescore(file, out)
    first = json.loads(out.read_text())
    assert first["correct"] is True and json.loads(first["details"]) == details
    rescore(out, file)
    again = json.loads(file.read_text())
    assert {**again, "scorer": None} == {**first, "scorer": None}


def test_score_wants_pictures_or_detections(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "out.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text('{"a": 1')
    for arguments, says in (
        (["--scorer", "geneval"], "--images"),
        (["--scorer", "ocr", "--detections", "x.jsonl"], "--scorer geneval"),
        (["--scorer", "geneval", "--detections", "x.jsonl", "--images", "y"], "--images"),
        (["--scorer", "geneval", "--detections", "none.jsonl"], "none.jsonl: no such file"),
        (["--scorer", "geneval", "--detections", str(tmp_path / "empty.jsonl")], "no detections in it"),
        (["--scorer", "geneval", "--detections", str(tmp_path / "torn.jsonl")], "torn.jsonl:1: not JSON"),
    ):
        assert cli.main(["score", *arguments, "--out", out]) == 2
        assert says in capsys.readouterr().err
