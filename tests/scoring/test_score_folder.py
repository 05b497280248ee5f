"""Scoring a folder: every line against the scorer called by hand, resuming, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scorer_settings import scorers

from star import cli
from star.config import load
from star.errors import InputError
from star.scoring import pictures, samples
from star.scoring.folder import score, score_all
from star.scoring.scorer import make_scorer
from star.scoring.summary import print_summary
from star.worlds.miniature.captions import TAGS, caption, descriptions
from star.worlds.miniature.scenes import compose, render

SCORERS = scorers(geneval_detector="miniature")
BLANK = np.full((64, 64, 3), 230, np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two prompts a tag, two pictures each; the first is right, the second right only for the first prompt of `colors`."""
    root, rng, number = tmp_path / "images", np.random.default_rng(4), 0
    for tag in TAGS:
        for k, d in enumerate(list(descriptions(tag))[:2]):
            home = root / f"{number:05d}"
            (home / "samples").mkdir(parents=True)
            line = {**d, "prompt": caption(d), "id": f"geneval-{number:05d}", "task": "geneval", "core": []}
            (home / "metadata.jsonl").write_text(json.dumps(line) + "\n")
            right = render(compose(d, rng))
            for sample, picture in enumerate((right, right if (tag, k) == ("colors", 0) else BLANK)):
                Image.fromarray(picture).save(home / "samples" / f"{sample:04d}.png")
            number += 1
    return root


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_and_summary(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "scores" / "epoch0000.jsonl"
    result = score("geneval", images, out, SCORERS)
    lines = _lines(out)
    assert [line["filename"] for line in lines] == [f"{i:05d}/samples/{k:04d}.png" for i in range(12) for k in (0, 1)]
    assert lines[3].keys() == {
        *("filename", "tag", "prompt", "correct", "reason", "metadata", "details"),
        *("prompt_id", "sample", "score", "reward", "scorer", "task"),
    }
    assert (lines[3]["prompt_id"], lines[3]["sample"], lines[3]["task"]) == ("geneval-00001", 1, "geneval")
    assert json.loads(lines[0]["metadata"]).keys() == {"tag", "include", "prompt"}
    assert {line["scorer"] for line in lines} == {make_scorer("geneval", SCORERS).fingerprint}
    assert result["tags"] == {tag: 0.75 if tag == "colors" else 0.5 for tag in TAGS}
    assert result["mean"] == pytest.approx((5 * 0.5 + 0.75) / 6)
    assert result["correct_prompts"] == 1.0  # every prompt has one right picture
    assert (result["images"], result["prompts"]) == (24, 12)
    assert not out.with_name("epoch0000.jsonl.partial").exists()
    print_summary(result)
    printed = capsys.readouterr().out
    assert "any correct    1.0000 of prompts" in printed
    assert "24 images of 12 prompts" in printed and "0.5417" in printed and "color_attr" in printed


def test_resumes_and_ends_the_same(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score("geneval", images, whole, SCORERS)
    lines = whole.read_text().splitlines(keepends=True)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text("".join(lines[:7]) + lines[7][:40])  # killed while writing
    read = []
    monkeypatch.setattr(pictures, "read", lambda path, read_=pictures.read: read.append(path) or read_(path))
    score("geneval", images, out, SCORERS)
    assert len(read) == 2 * (24 - 7)  # looked at before work, then scored
    assert out.read_bytes() == whole.read_bytes() and not partial.exists()


def test_refuses_to_mix_scorers(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    score("geneval", images, out, SCORERS)
    line = _lines(out)[0] | {"scorer": "geneval other@000"}
    (tmp_path / "out.jsonl.partial").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"out\.jsonl\.partial.*other@000.*delete"):
        score("geneval", images, out, SCORERS)


def _remove_metadata(images: Path) -> str:
    (images / "00003" / "metadata.jsonl").unlink()
    return r"00003/metadata\.jsonl: missing"


def _spoil_metadata(images: Path) -> str:
    (images / "00003" / "metadata.jsonl").write_text("{")
    return r"00003/metadata\.jsonl: not one line of JSON"


def _remove_prompt(images: Path) -> str:
    (images / "00003" / "metadata.jsonl").write_text('{"tag": "colors"}')
    return r"00003/metadata\.jsonl: no `prompt`"


def _remove_include(images: Path) -> str:
    (images / "00003" / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a photo of a red ring"}')
    return "a photo of a red ring.*include"


def _spoil_picture(images: Path) -> str:
    (images / "00011" / "samples" / "0001.png").write_bytes(b"not a picture")
    return r"00011/samples/0001\.png: not a readable picture"


def _tear_picture(images: Path) -> str:
    picture = images / "00011" / "samples" / "0000.png"
    picture.write_bytes(picture.read_bytes()[:-60])
    return r"00011/samples/0000\.png: not a readable picture"


def _remove_pictures(images: Path) -> str:
    for picture in (images / "00002" / "samples").iterdir():
        picture.unlink()
    return "00002/samples: no pictures"


@pytest.mark.parametrize(
    "spoil",
    [_remove_metadata, _spoil_metadata, _remove_prompt, _remove_include, _spoil_picture, _tear_picture, _remove_pictures],
)
def test_bad_input_is_named_before_any_work(spoil: object, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=spoil(images)):
        score("geneval", images, out, SCORERS)
    assert not out.exists() and not out.with_name("out.jsonl.partial").exists()


def test_empty_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folders 00000"):
        score("geneval", tmp_path, tmp_path / "out.jsonl", SCORERS)


def test_mean_of_a_task_without_geneval_tags(images: Path, tmp_path: Path) -> None:
    chosen = scorers(pickscore_model="resources/miniature/pickscore", pickscore_processor="resources/miniature/pickscore")
    out = tmp_path / "cross.jsonl"
    result = score("pickscore", images, out, chosen)
    lines = _lines(out)
    assert result["mean"] == pytest.approx(np.mean([line["score"] for line in lines]))
    assert lines[0]["reward"] == pytest.approx(lines[0]["score"] / 26)
    assert lines[0]["score"] > lines[1]["score"]  # the second picture of the first prompt is blank


def test_refuses_to_go_on_with_other_prompts(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    score("geneval", images, out, SCORERS)
    line = _lines(out)[0] | {"prompt": "a photo of something else"}
    (tmp_path / "out.jsonl.partial").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"out\.jsonl\.partial.*another prompt for 00000/samples/0000\.png"):
        score("geneval", images, out, SCORERS)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Pictures of known brightness: 10 times the place in the order of names by value."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for level, name in enumerate(("1.JPG", "2.png", "10.png", "cat_3.webp"), start=1):
        Image.new("RGB", (64, 64), (10 * level,) * 3).save(folder / name)
    (folder / "notes.md").write_text("no picture")
    return folder


def _found(flat: Path, prompts: Path) -> list[tuple]:
    return [(s.name, s.number, s.record.id, s.record.text) for s in samples.find(flat, "ocr", prompts)]


def test_flat_pictures_belong_to_prompts_in_order(flat: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first \u2028 prompt\r\nsecond prompt\n")
    assert _found(flat, prompts) == [
        ("1.JPG", 0, "ocr-00000", "first \u2028 prompt"),
        ("2.png", 1, "ocr-00000", "first \u2028 prompt"),
        ("10.png", 0, "ocr-00001", "second prompt"),
        ("cat_3.webp", 1, "ocr-00001", "second prompt"),
    ]


def test_flat_pictures_are_named_by_their_lines(flat: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"file": "cat_3.webp", "prompt": "a cat", "tag": "colors", "include": [{"class": "cat", "count": 1}]},
        {"file": "10.png", "prompt": "a dog", "id": "dog"},
        {"file": "1.JPG", "prompt": "a cat", "metadata": {"text": "CAT"}},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    assert _found(flat, prompts) == [
        ("cat_3.webp", 0, "ocr-00000", "a cat"),
        ("10.png", 0, "dog", "a dog"),
        ("1.JPG", 1, "ocr-00000", "a cat"),
    ]
    first, _, last = (s.record for s in samples.find(flat, "ocr", prompts))
    assert first.tag == "colors" and first.metadata == {k: lines[0][k] for k in ("prompt", "tag", "include")}
    assert last.tag == "ocr" and last.metadata == {"text": "CAT"}


def test_prompts_stand_for_missing_metadata(images: Path, tmp_path: Path) -> None:
    whole, out, prompts = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "prompts.jsonl"
    score("geneval", images, whole, SCORERS)
    described = sorted(images.glob("*/metadata.jsonl"))
    prompts.write_text("".join(path.read_text() for path in described))
    for path in described:
        path.unlink()
    score("geneval", images, out, SCORERS, prompts)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "one\ntwo\nthree\n", "4 pictures cannot be shared evenly by the 3 prompts"),
        ("p.txt", "one\n\ntwo\nthree\n", r"p\.txt:2: no prompt"),
        ("p.jsonl", "one\n", r"p\.jsonl:1: not JSON"),
        ("p.jsonl", "[1]\n", r"p\.jsonl:1: no prompt"),
        ("p.jsonl", '{"prompt": 3}', r"p\.jsonl:1: `prompt` is 3, not text"),
        ("p.jsonl", "", r"p\.jsonl: no prompts in it"),
        ("p.jsonl", "[" * 100000, r"p\.jsonl:1: not a JSON array"),
        ("p.jsonl", '{"prompt": ' + "9" * 5000 + "}", r"p\.jsonl:1: not JSON"),
        ("p.jsonl", '{"prompt": "a", "metadata": 3}', r"p\.jsonl:1: `metadata`"),
        ("p.jsonl", '{"prompt": "a", "file": 3}', r"p\.jsonl:1: `file`"),
        ("p.jsonl", '{"prompt": "a", "file": "2.png"}\n{"prompt": "b"}', r"p\.jsonl:2: no `file`"),
        ("p.jsonl", '{"prompt": "a", "file": "3.png"}', r"p\.jsonl:1: `file` names .*3\.png"),
        ("p.jsonl", '{"prompt": "a", "file": "2.png"}\n{"prompt": "b", "file": "2.png"}', "a picture twice"),
    ],
)
def test_bad_prompt_files_are_named(name: str, text: str, words: str, flat: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        samples.find(flat, "ocr", tmp_path / name)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"no folders 00000.*--prompts"):
        samples.find(flat, "ocr")


def test_hidden_and_other_files_are_no_pictures(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score("geneval", images, whole, SCORERS)
    for name in (".DS_Store", "._0000.png", "0000.jpg"):
        (images / "00003/samples" / name).write_bytes(b"no picture")
    (images / ".DS_Store").write_bytes(b"of a Mac")
    (images / "00003 copy/samples").mkdir(parents=True)
    capsys.readouterr()
    score("geneval", images, out, SCORERS)
    names = "00003 copy, 00003/samples/.DS_Store, 00003/samples/._0000.png, 00003/samples/0000.jpg"
    assert f"{images}: 4 left out, not scored: {names}\n" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()


def test_pictures_are_named_by_absolute_paths_too(flat: Path, tmp_path: Path) -> None:
    elsewhere, prompts = tmp_path / "elsewhere.png", tmp_path / "prompts.jsonl"
    elsewhere.write_bytes((flat / "2.png").read_bytes())
    lines = [{"file": str(flat / "2.png"), "prompt": "a cat"}, {"file": str(elsewhere), "prompt": "a dog"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _found(flat, prompts) == [("2.png", 0, "ocr-00000", "a cat"), (str(elsewhere), 0, "ocr-00001", "a dog")]
    prompts.write_text(json.dumps(lines, indent=1))  # one array is as good as lines
    assert [name for name, *_ in _found(flat, prompts)] == ["2.png", str(elsewhere)]
    lines.append({"file": "../flat/2.png", "prompt": "a cat"})
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"prompts\.jsonl:3: names a picture twice, .* is in .*prompts\.jsonl:1 too"):
        _found(flat, prompts)


def test_an_id_names_one_prompt(flat: Path, images: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a cat", "id": "1"}\n{"prompt": "a dog", "id": "1"}\n')
    with pytest.raises(InputError, match=r"prompts\.jsonl:2: id '1' is that of another prompt in .*prompts\.jsonl:1"):
        _found(flat, prompts)
    (images / "00004/metadata.jsonl").write_bytes((images / "00003/metadata.jsonl").read_bytes())
    with pytest.raises(
        InputError, match=r"00004/samples/0000\.png: is picture 0 of 'geneval-00003', as 00003/samples/0000\.png is"
    ):
        samples.find(images, "geneval")


def test_more_prompts_than_folders_are_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("prompt\n" * 13)
    with pytest.raises(InputError, match=r"13 prompts.*00000 to 00012"):
        samples.find(images, "ocr", tmp_path / "p.txt")


def test_all_tasks_score_what_their_prompts_allow(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, home = tmp_path / "all", images / "00012"
    assert cli.main(["score", "--all", "--images", str(images), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "ocr: not scored" in printed and "geneval: 24 images" in printed and "pickscore: 24 images" in printed
    assert sorted(p.name for p in out.iterdir()) == ["geneval.jsonl", "pickscore.jsonl"]
    (home / "samples").mkdir(parents=True)
    (home / "metadata.jsonl").write_text(json.dumps({"prompt": 'a sign that says "HAT"', "text": "HAT"}))
    d = {"text": "HAT", "carrier": "sign"}
    Image.fromarray(render(compose(d, np.random.default_rng(0)))).save(home / "samples/0000.png")
    scorers = load("config/miniature.yaml").scorers
    again = tmp_path / "again"
    found = score_all(images, again, scorers)
    assert {task: result["images"] for task, result in found.items()} == {"geneval": 24, "ocr": 1, "pickscore": 25}
    assert found["ocr"]["mean"] == 1.0 and found["ocr"]["left_out"] == 24
    assert (again / "geneval.jsonl").read_bytes() == (out / "geneval.jsonl").read_bytes()
    (home / "samples/0000.png").write_bytes(b"spoilt")
    with pytest.raises(InputError, match=r"00012/samples/0000\.png: not a readable picture"):
        score_all(images, tmp_path / "none", scorers)
    assert not (tmp_path / "none").exists()
