"""Collapse guards: closed forms and explicit loops, cross-task scores against scoring a folder, and the table's reading."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scorer_settings import scorers

from star import cli
from star.analysis.results import read_guards
from star.config import Scorers
from star.errors import InputError
from star.files import write_json
from star.scoring import folder, guards, samples
from star.scoring.guards import color_entropy, cosine_distance, edge_density, pixel_distance
from star.scoring.scorer import GUARDS, Scorer, make_scorer
from star.worlds.miniature.captions import caption, descriptions
from star.worlds.miniature.scenes import compose, render

MODEL = "resources/miniature/pickscore"
SCORERS = scorers(
    geneval_detector="miniature",
    ocr_engine="rapidocr",
    ocr_mode="line",
    ocr_size=64,
    pickscore_model=MODEL,
    pickscore_processor=MODEL,
)


def _folder(root: Path, task: str, drawn: list[dict], pictures: list[list[np.ndarray]]) -> Path:
    for number, (d, group) in enumerate(zip(drawn, pictures, strict=True)):
        home = root / f"{number:05d}"
        (home / "samples").mkdir(parents=True)
        (home / "metadata.jsonl").write_text(json.dumps({**d, "prompt": caption(d), "id": f"{task}-{number:05d}"}))
        for k, picture in enumerate(group):
            Image.fromarray(picture).save(home / "samples" / f"{k:04d}.png")
    return root


def measure(name: str, images: Path, scorers: Scorers) -> dict:
    def scorer_of(other: str) -> Scorer:
        return make_scorer(other, scorers)

    return guards.measure(name, samples.find(images, name), diversity=scorers.diversity, scorer_of=scorer_of)


def test_edge_density_of_steps() -> None:
    image = np.zeros((11, 21, 3), np.uint8)
    assert edge_density(image) == 0
    image[:, 8:] = 255  # one column of 20 has a step to its right
    assert edge_density(image) == pytest.approx(1 / 20)
    image[:, 8:] = 25  # 25 / 255 < 0.1
    assert edge_density(image) == 0
    image[:, 8:] = 26
    assert edge_density(image) == pytest.approx(1 / 20)
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    assert edge_density(np.stack([board] * 3, -1)) == 1


def test_color_entropy_in_bits() -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    assert color_entropy(image) == 0
    image[:4] = 0
    assert color_entropy(image) == pytest.approx(1)
    image[:4, :4, 0] = 255
    assert color_entropy(image) == pytest.approx(1.5)
    levels = np.stack(np.meshgrid(*[[0, 64, 128, 255]] * 3), -1).reshape(8, 8, 3).astype(np.uint8)
    assert color_entropy(levels) == pytest.approx(6)


def test_distances_are_means_over_pairs() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(5, 7))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(a, b) for i, a in enumerate(features) for b in features[i + 1 :]]
    assert cosine_distance(features) == pytest.approx(np.mean([1 - a @ b for a, b in pairs]))
    assert pixel_distance(features) == pytest.approx(np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in pairs]))
    for distance in (cosine_distance, pixel_distance):
        assert distance(features[[0, 0, 0]]) == pytest.approx(0, abs=1e-12)
        assert distance(features[:1]) is None


@pytest.mark.parametrize("features", ["pickscore", "pixels"])
def test_diversity_falls_when_a_prompts_pictures_become_one(features: str, tmp_path: Path) -> None:
    rng, scorers = np.random.default_rng(0), SCORERS.model_copy(update={"diversity": features})
    drawn = list(descriptions("free"))[:2]
    groups = [[render(compose(d, rng)) for _ in range(3)] for d in drawn]
    varied = measure("pickscore", _folder(tmp_path / "varied", "pickscore", drawn, groups), scorers)
    same = measure("pickscore", _folder(tmp_path / "same", "pickscore", drawn, [g[:1] * 3 for g in groups]), scorers)
    assert same["diversity"] == pytest.approx(0, abs=1e-6) and varied["diversity"] > 0.005
    if features == "pickscore":  # against an explicit loop over the embeddings
        model = make_scorer("pickscore", scorers)
        by_hand = []
        for group in groups:
            e = model.embed(group).numpy()
            by_hand.append(np.mean([1 - e[0] @ e[1], 1 - e[0] @ e[2], 1 - e[1] @ e[2]]))
        assert varied["diversity"] == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert (varied["images"], varied["prompts"]) == (6, 2)
    one = measure("pickscore", _folder(tmp_path / "one", "pickscore", drawn, [g[:1] for g in groups]), scorers)
    assert one["diversity"] is None and one["edge_density"] > 0


def test_cross_task_scores_are_those_of_the_other_scorers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    drawn = [*list(descriptions("free"))[:2], next(descriptions("ocr"))]  # two with objects, one with lettering
    images = _folder(tmp_path / "images", "pickscore", drawn, [[render(compose(d, rng)) for _ in range(2)] for d in drawn])
    cross = measure("pickscore", images, SCORERS)["cross"]
    alone = folder.score_all(images, tmp_path / "alone", SCORERS)
    assert {task: other["images"] for task, other in cross.items()} == {"geneval": 4, "ocr": 2}
    for task, other in cross.items():
        assert other["mean"] == pytest.approx(alone[task]["mean"], abs=1e-6) and other["scorer"] == alone[task]["scorer"]
    cross = measure("geneval", images, SCORERS)["cross"]
    assert {task: other["images"] for task, other in cross.items()} == {"ocr": 2, "pickscore": 6}
    assert cross["pickscore"]["mean"] == pytest.approx(alone["pickscore"]["mean"], abs=1e-4)


def test_command_writes_what_the_tables_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    d = next(descriptions("colors"))
    rng = np.random.default_rng(2)
    images = _folder(tmp_path / "images", "geneval", [d], [[render(compose(d, rng)) for _ in range(2)]])
    out, guards = tmp_path / "scores.jsonl", tmp_path / "guards/epoch0000.json"
    command = ["score", "--scorer", "geneval", "--images", str(images), "--out", str(out), "--guards", str(guards)]
    assert cli.main(command) == 0
    assert out.exists() and "overall        1.0000" in capsys.readouterr().out
    rows = read_guards(guards)
    assert [row[0] for row in rows] == [*GUARDS, "pickscore"]
    assert all(images == 2 for _, _, images, _ in rows) and "pickscore" in rows[0][3]
    assert cli.main(["score", "--all", "--images", str(images), "--out", str(tmp_path), "--guards", "x.json"]) == 2
    assert "--guards: needs --scorer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edge_density": None}, "`edge_density` is None"),
        ({"diversity": float("nan")}, "`diversity` is nan"),
        ({"cross": []}, "not the guards"),
        ({"cross": {"ocr": {"mean": 1.0}}}, "not the guards"),
    ],
)
def test_broken_files_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    good = {"images": 2, "features": "f", "diversity": None, "edge_density": 0.1, "color_entropy": 2.0, "cross": {}}
    path = tmp_path / "epoch0000.json"
    write_json(path, good)
    assert read_guards(path)[0] == ("diversity", None, 2, "f")
    path.write_text(json.dumps(good | change))
    with pytest.raises(InputError, match=rf"epoch0000\.json: {words}.*star score"):
        read_guards(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_guards(path)
