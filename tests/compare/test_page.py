"""The page of `star compare`: which pairs it holds, on which sides, and that it does not tell which side is A."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies import data, pictures

from star import cli
from star.compare import page
from star.errors import InputError

ASK = {"question": "Which is better?"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return pictures(tmp_path / "method-of-mine", seed=1), pictures(tmp_path / "the-other", seed=2)


def _pixels(source: str, out: Path) -> np.ndarray:
    inside = source.startswith("data:image/webp;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])) if inside else out / source)
    assert picture.format == "WEBP" and not {"checkpoint", "exif"} & set(picture.info)
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("most", [0, page.EMBEDDED_AT_MOST])
def test_every_pair_is_on_the_page_bit_for_bit_on_the_side_that_the_key_says(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(page, "EMBEDDED_AT_MOST", most)
    study = page.write(folders, tmp_path / "page", **ASK)
    assert study[1:] == (12, 6, most == 0)
    written = data(tmp_path / "page/index.html")
    assert written["comparison"] == study.id and written["seed"] == 0
    assert written["key"]["a_side"].count("left") == 6
    assert {(item["prompt_id"], item["picture"]) for item in written["items"]} == {
        (f"shapes-{n:05d}", k) for n in range(6) for k in range(2)
    }
    for item, side in zip(written["items"], written["key"]["a_side"], strict=True):
        other = "right" if side == "left" else "left"
        for shown, folder in ((side, folders[0]), (other, folders[1])):
            source = folder / item["prompt_id"][-5:] / "samples" / f"{item['picture']:04d}.png"
            assert np.array_equal(_pixels(item[shown], tmp_path / "page"), np.asarray(Image.open(source)))
        assert item["prompt"] == f"prompt “{int(item['prompt_id'][-5:])}” & <b>"


def test_the_page_does_not_tell_which_side_is_a(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page.write(folders, tmp_path / "page", **ASK)
    text = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    for name in ("method-of-mine", "the-other", "checkpoint", str(tmp_path)):
        assert name not in text
    assert '"left"' not in re.search(r'"key": ".*?"', text)[0]


def test_the_page_asks_nothing_of_a_network(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page.write(folders, tmp_path / "page", **ASK)
    text = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|<link|@import|fetch\(", re.sub(r'"data:[^"]*"', '""', text))


def test_a_seed_names_a_comparison(folders: tuple[Path, Path], tmp_path: Path) -> None:
    texts = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        page.write(folders, tmp_path / name, seed=seed, **ASK)
        texts[name] = (tmp_path / name / "index.html").read_bytes()
    assert texts["one"] == texts["again"]
    one, other = data(tmp_path / "one/index.html"), data(tmp_path / "other/index.html")
    assert one["comparison"] != other["comparison"] and one["key"]["a_side"] != other["key"]["a_side"]
    page.write(folders, tmp_path / "one", seed=0, **ASK)
    with pytest.raises(InputError, match="another page"):
        page.write(folders, tmp_path / "one", seed=1, **ASK)


def test_fewer_pairs_are_of_as_many_prompts_as_can_be(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page.write(folders, tmp_path / "six", count=6, **ASK)
    page.write(folders, tmp_path / "eight", count=8, **ASK)
    prompts = [[item["prompt_id"] for item in data(tmp_path / name / "index.html")["items"]] for name in ("six", "eight")]
    assert len(set(prompts[0])) == 6 and len(set(prompts[1])) == 6
    assert prompts[0] != sorted(prompts[0])


def test_flat_folders_and_runs_are_compared_too(tmp_path: Path) -> None:
    run, flat = tmp_path / "run", tmp_path / "flat"
    pictures(run / "samples/epoch0002", seed=1, prompts=2, images=1)
    pictures(run / "samples/epoch0012", seed=2, prompts=2, images=1)
    flat.mkdir()
    for n in range(2):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(flat / f"{n}.jpg")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n", encoding="utf-8")
    page.write((run, flat), tmp_path / "page", prompts=prompts, **ASK)
    written = data(tmp_path / "page/index.html")
    assert sorted(item["prompt"] for item in written["items"]) == ["a cat", "a dog"]
    shown = {json.dumps(_pixels(item[s], tmp_path).tolist()) for item in written["items"] for s in ("left", "right")}
    assert json.dumps(np.asarray(Image.open(run / "samples/epoch0012/00000/samples/0000.png")).tolist()) in shown


def test_what_cannot_be_compared_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = folders
    fewer = pictures(tmp_path / "fewer", seed=3, prompts=5)
    for pair in ((a, fewer), (fewer, a)):
        with pytest.raises(InputError, match=r"fewer: no pictures of prompt `shapes-00005`.*--prompts"):
            page.write(pair, tmp_path / "page", **ASK)
    metadata = b / "00003/metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace('"prompt ', '"a prompt '), encoding="utf-8")
    with pytest.raises(InputError, match="`shapes-00003` is another text"):
        page.write((a, b), tmp_path / "page", **ASK)
    with pytest.raises(InputError, match=r"--count: 13 .* 12"):
        page.write((a, a), tmp_path / "page", count=13, **ASK)
    with pytest.raises(InputError, match="--count: 0"):
        page.write((a, a), tmp_path / "page", count=0, **ASK)
    assert not (tmp_path / "page").exists()


def test_on_the_command_line(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["compare", "--a", str(folders[0]), "--b", str(folders[1]), "--out", str(tmp_path / "page"), "--count", "4"]
    assert cli.main(command) == 0
    assert "4 pairs of 4 prompts" in capsys.readouterr().out
    assert cli.main([*command[:2], str(tmp_path / "none"), *command[3:]]) == 2
    assert "none" in capsys.readouterr().err
