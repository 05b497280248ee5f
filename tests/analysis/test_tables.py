"""Tables and figures of a synthetic experiment whose every number is known."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from star import layout
from star.analysis import results, words
from star.analysis.write import write
from star.config import Config, parse
from star.errors import InputError

TAGS = {"shapes": {"single_object": 2, "position": 6}, "words": {"ocr": 5}}
SCORERS = {"shapes": ["geneval"], "words": ["ocr", "pickscore"]}
GAIN = {"base": 0.0, "flow_grpo": 0.125, "star": 0.375, "random": 0.125}
EPOCHS, IMAGES = 10, 4


def _config(folder: Path) -> Config:
    data = {
        "experiment": "synthetic",
        "results": str(folder),
        "seeds": [0, 3],
        "prompts": {"world": "miniature"},
        "policy": {"model": "base", "resolution": 64, "guidance": 1.0},
        "rollout": {},
        "training": {"epochs": EPOCHS},
        "checkpoints": {"every": 4},
        "evaluation": {"images_per_prompt": IMAGES},
        "scorers": {},
        "tasks": {
            "shapes": {"prompts": "shapes", "reward": {"geneval": 1.0}},
            "words": {"prompts": "letters", "reward": {"ocr": 1.0}, "report": ["ocr", "pickscore"]},
        },
        "methods": {
            "flow_grpo": {},
            "star": {"allocation": {"source": "uniform"}},
            "random": {"allocation": {"source": "uniform", "control": "random"}},
        },
    }
    return parse(data, "synthetic.yaml")


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _score_rows(task: str, gain: float, seed: int) -> list[dict]:
    """Image (prompt i, sample j) scores i/64 + seed/64 + gain: differences between methods are the same for all."""
    rows = []
    tags = [tag for tag, count in TAGS[task].items() for _ in range(count)]
    for i, tag in enumerate(tags):
        for j in range(IMAGES):
            rows.append(
                {
                    "filename": f"{i:05d}/samples/{j:04d}.png",
                    "tag": tag,
                    "prompt": f"a photo of {i} things_100%",
                    "prompt_id": f"{task}-{i:05d}",
                    "sample": j,
                    "score": (i + seed) / 64 + gain,
                    "reward": 0.0,
                    "scorer": f"{task}-scorer",
                    "task": task,
                }
            )
    return rows


def _metric_rows(method: str) -> list[dict]:
    seconds = {"seconds_rollout": 2.0, "seconds_reward": 0.5, "seconds_update": 1.5}
    return [
        {
            "epoch": epoch,
            "reward_mean": epoch / 10,
            "reward_std": 0.5,
            "images": 12,
            "peak_memory_bytes": 5e8 + epoch,
            "seconds_maps": 1.0 if method == "star" else 0.0,
            "map_entropy": None,
            **seconds,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def _guards(path: Path, task: str, gain: float, images: int) -> None:
    other = "pickscore" if task == "shapes" else "geneval"
    cross = {other: {"mean": 20 * gain, "images": images, "scorer": f"{other}-scorer"}}
    measured = {"diversity": 0.5 - gain if task == "shapes" else None, "edge_density": gain, "color_entropy": 2.0}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "prompts": 8, "features": "clip", **measured, "cross": cross}))


def _fill(config: Config) -> None:
    for task in config.tasks:
        for method in results.methods(config, task):
            for seed in config.seeds:
                run = layout.run(config, task, method, seed)
                if method != "base":
                    _jsonl(run.metrics, _metric_rows(method))
                for step in layout.epochs(config, task, method):
                    rows = _score_rows(task, GAIN[method] * step / EPOCHS, seed)
                    _jsonl(run.scores(step), rows)
                    for other in SCORERS[task][1:]:
                        of_other = [row | {"score": 10 * row["score"], "scorer": f"{other}-scorer"} for row in rows]
                        _jsonl(run.scores(step, other), of_other)
                    _guards(run.guards(step), task, GAIN[method] * step / EPOCHS, len(rows))
                    for row in rows[::IMAGES]:  # sample 0 is what the grid shows
                        picture = run.samples(step) / row["filename"]
                        picture.parent.mkdir(parents=True, exist_ok=True)
                        Image.new("RGB", (8, 8), (step, 0, 0)).save(picture)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = _config(tmp_path_factory.mktemp("results"))
    _fill(config)
    out = tmp_path_factory.mktemp("out")
    write(config, out)
    return out


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = _config(tmp_path)
    _fill(config)
    return config


def test_main_table_is_long_and_right(written: Path):
    main = pd.read_csv(written / "tables/main.csv")
    assert list(main) == ["task", "method", "metric", "mean", "ci_low", "ci_high", "n"]
    rows = main.set_index(["task", "method", "metric"])
    # Tags unweighted: prompts 0, 1 and 2..7; seeds 0 and 3 have the mean 1.5.
    assert rows.loc[("shapes", "base", "geneval"), "mean"] == pytest.approx(((0.5 + 4.5) / 2 + 1.5) / 64)
    assert rows.loc[("words", "star", "ocr"), "mean"] == pytest.approx((2 + 1.5) / 64 + 0.375)
    assert rows.loc[("shapes", "base", "geneval"), "n"] == 8 * IMAGES * 2
    for (_, method, metric), row in rows.iterrows():
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
        if "-minus-" in metric:
            scorer, reference = metric.split("-minus-")
            exact = (10 if scorer == "pickscore" else 1) * (GAIN[method] - GAIN[reference])
            assert row[["mean", "ci_low", "ci_high"]].tolist() == pytest.approx([exact] * 3)
    assert {m.split("-minus-")[1] for _, method, m in rows.index if method == "star" and "-minus-" in m} == {
        "base",
        "flow_grpo",
        "random",
    }


def test_every_reported_scorer_has_its_column(written: Path):
    rows = pd.read_csv(written / "tables/main.csv").set_index(["task", "method", "metric"])["mean"]
    assert rows["words", "star", "pickscore"] == pytest.approx(10 * rows["words", "star", "ocr"])
    assert rows["words", "star", "pickscore-minus-flow_grpo"] == pytest.approx(2.5)
    assert set(rows["shapes"].index.get_level_values("metric").str.partition("-minus-").get_level_values(0)) == {"geneval"}
    header = (written / "tables/main.md").read_text(encoding="utf-8").splitlines()[6]
    columns = [cell.strip().partition(" (")[0] for cell in header.split("|")[1:-1]]
    assert columns == ["method", "shapes", "words", "words: pickscore"]


def test_a_missing_score_of_another_scorer_is_named(config: Config):
    path = layout.run(config, "words", "star", 3).scores(10, "pickscore")
    path.unlink()
    _refused(config, str(path), "star score --task pickscore --images")


def test_categories_hold_every_tag(written: Path):
    rows = pd.read_csv(written / "tables/categories.csv").set_index(["method", "tag"])
    assert rows.loc[("star", "position"), "mean"] == pytest.approx((4.5 + 1.5) / 64 + 0.375)
    assert rows.loc[("star", "position"), "n"] == 6 * IMAGES * 2
    assert set(rows.loc["base"].index) == {"single_object", "position", "overall"}


def test_cost_is_right(written: Path):
    row = pd.read_csv(written / "tables/cost.csv").set_index(["task", "method"]).loc[("shapes", "star")]
    known = {
        "epochs": EPOCHS,
        "seconds_epoch": 5,
        "seconds_total": 50,
        "seconds_maps": 1,
        "map_overhead_percent": 20,
        "epoch_ratio": 5 / 4,
        "images_per_second": 12 / 5,
        "peak_memory_mb": 500.00001,
    }
    assert row[list(known)].to_dict() == pytest.approx(known)


def test_ablation_is_right(written: Path):
    rows = pd.read_csv(written / "tables/ablation.csv").set_index(["task", "method"])
    assert rows.loc[("words", "star"), ["diff", "diff_low", "diff_high"]].tolist() == pytest.approx([0.25] * 3)
    assert rows.loc[("words", "random"), "reward_last_fifth"] == pytest.approx(0.95)  # epochs 9 and 10
    assert np.isnan(rows.loc[("words", "flow_grpo"), "diff"])


def test_the_first_line_says_in_words_what_the_table_shows(written: Path):
    first = (written / "tables/main.md").read_text().splitlines()[0]
    assert first.startswith(
        "shapes: flow_grpo (0.188), star (0.438) and random (0.188) are above the untrained model's 0.062; "
        "star is ahead of flow_grpo and random. words:"
    )
    assert first.endswith(
        "These are 2 training seeds; the intervals are over prompts alone, and the evidence has those over seeds."
    )


def test_words_say_no_more_than_the_intervals(tmp_path: Path):
    config = _config(tmp_path).model_copy(update={"seeds": [0]})
    rows = [
        ("words", "base", "ocr", 0.5, 0.4, 0.6),
        *(("words", method, "ocr", mean, 0, 1) for method, mean in (("flow_grpo", 0.7), ("star", 0.3), ("random", 0.5))),
        ("words", "flow_grpo", "ocr-minus-base", 0.2, 0.1, 0.3),
        ("words", "star", "ocr-minus-base", -0.2, -0.3, -0.1),
        ("words", "random", "ocr-minus-base", 0.0, -0.1, 0.1),
        ("words", "star", "ocr-minus-flow_grpo", -0.4, -0.5, -0.3),
        ("words", "star", "ocr-minus-random", -0.2, -0.4, 0.0),
    ]
    main = pd.DataFrame(rows, columns=["task", "method", "metric", "mean", "ci_low", "ci_high"])
    only = config.model_copy(update={"tasks": {"words": config.tasks["words"]}})
    assert words.sentences(only, main) == [
        "words: flow_grpo (0.700) is above the untrained model's 0.500; star (0.300) is below the untrained model's 0.500; "
        "random (0.500) is not told apart from its 0.500; star is behind flow_grpo; star is not told apart from random.",
        "This is one training seed: it compares these adapters, not the methods.",
    ]


def test_tables_can_be_read(written: Path):
    text = (written / "tables/main.md").read_text()
    assert "| star - flow_grpo   | +0.250 [+0.250, +0.250] *" in text
    assert "| random - flow_grpo | +0.000 [+0.000, +0.000]  " in text
    for name in ("main", "categories", "cost", "ablation", "guards"):
        tex = (written / f"tables/{name}.tex").read_text()
        assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") >= 1
        assert not any("_" in line.replace(r"\_", "") for line in tex.splitlines() if "label{" not in line)


def test_guards_of_every_checkpoint_are_tabulated(written: Path):
    rows = pd.read_csv(written / "tables/guards.csv").set_index(["task", "method", "epoch", "guard"])
    assert rows.loc[("shapes", "star", 8, "diversity"), "mean"] == pytest.approx(0.5 - 0.375 * 0.8)
    assert rows.loc[("shapes", "star", 10, "pickscore")].tolist() == pytest.approx([7.5, 8 * IMAGES * 2])
    assert rows.loc[("words", "star", 10, "geneval"), "mean"] == pytest.approx(7.5)
    assert ("words", "star", 10, "diversity") not in rows.index  # one picture a prompt
    assert {epoch for _, method, epoch, _ in rows.index if method == "star"} == {4, 8, 10}


def test_guards_stand_below_the_main_table(written: Path):
    scores, _, guards = (written / "tables/main.md").read_text().split("\n## ")[1:]
    assert scores.startswith("Scores") and guards.startswith("Collapse guards")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in guards.splitlines() if line.startswith("|")]
    assert lines[0] == ["task", "method", "diversity", "edge_density", "color_entropy", "geneval", "pickscore"]
    assert ["shapes", "star", "0.125", "0.375", "2.000", "-", "7.500"] in lines
    assert ["words", "star", "-", "0.375", "2.000", "7.500", "-"] in lines
    assert len(lines) == 2 + 2 * 4  # the final checkpoints of two tasks and four methods


def test_figures_are_drawn(written: Path):
    name = "{http://www.w3.org/2000/svg}"
    trees = {p.stem: ElementTree.parse(p) for p in (written / "figures").iterdir()}
    assert set(trees) == {"learning_curves", "scores", "categories", "samples"}
    pictures = trees["samples"].iter(f"{name}image")
    assert len(list(pictures)) == 2 * 3 * 4  # tasks, prompts, methods


def test_a_config_without_geneval_is_tabulated(tmp_path: Path):
    config = _config(tmp_path)
    config = config.model_copy(update={"tasks": {"words": config.tasks["words"]}})
    _fill(config)
    write(config, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/tables/categories.csv").empty


def test_a_method_of_one_task_is_tabulated_there_alone(tmp_path: Path):
    config = _config(tmp_path)
    config = parse(
        config.model_dump()
        | {"methods": {"flow_grpo": {}, "star": {"tasks": ["shapes"], "allocation": {"source": "uniform"}}}},
        "x.yaml",
    )
    _fill(config)
    write(config, tmp_path / "out")
    main = pd.read_csv(tmp_path / "out/tables/main.csv")
    assert set(zip(main["task"], main["method"], strict=True)) == {
        *(("shapes", method) for method in ("base", "flow_grpo", "star")),
        *(("words", method) for method in ("base", "flow_grpo")),
    }
    rows = [line for line in (tmp_path / "out/tables/main.md").read_text().splitlines() if line.startswith("| star ")]
    assert len(rows) == 3  # its score, and its differences to base and flow_grpo
    assert all(row.split("|")[3].strip() == "-" != row.split("|")[2].strip() for row in rows)


def _break_scores(config: Config, change: dict, method: str = "star") -> Path:
    path = layout.run(config, "words", method, 3).folder / "scores/epoch0010.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1] |= change
    _jsonl(path, rows)
    return path


def _refused(config: Config, *words: str) -> None:
    out = Path(config.results) / "out"
    with pytest.raises(InputError) as error:
        write(config, out)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_scorers_are_not_mixed(config: Config):
    path = _break_scores(config, {"scorer": "another"})
    _refused(config, str(path), str(layout.run(config, "words", "base", 0).folder / "scores/epoch0000.jsonl"), "another")


def test_guards_of_different_models_are_not_mixed(config: Config):
    path = layout.run(config, "words", "star", 3).folder / "guards/epoch0004.json"
    path.write_text(path.read_text().replace("geneval-scorer", "another"))
    _refused(config, str(path), "`geneval`", "geneval-scorer", "another")


def test_missing_guards_of_a_final_checkpoint_are_named_with_their_command(config: Config):
    path = layout.run(config, "words", "star", 3).folder / "guards/epoch0010.json"
    path.unlink()
    _refused(config, str(path), "star score --task words", f"--guards {path}")
    (path.parent / "epoch0004.json").unlink()
    _guards(path, "words", 0.375, 20)
    scores = results.scores(config)
    assert set(results.guards(config, scores).query("method == 'star' and task == 'words' and seed == 3")["epoch"]) == {8, 10}


def test_other_prompts_are_refused(config: Config):
    path = layout.run(config, "words", "star", 3).folder / "scores/epoch0010.jsonl"
    path.write_text(path.read_text().replace("words-00004", "words-00009"))
    _refused(config, str(path), "paired")


@pytest.mark.parametrize("score", [None, "0.5", True, float("nan")])
def test_scores_that_are_no_numbers_are_refused(config: Config, score: object):
    _refused(config, str(_break_scores(config, {"score": score})), "`score`")


def test_missing_images_of_a_prompt_are_refused(config: Config):
    path = layout.run(config, "words", "star", 3).folder / "scores/epoch0010.jsonl"
    _jsonl(path, [json.loads(line) for line in path.read_text().splitlines()][:-1])
    _refused(config, str(path), "different numbers of images")


def test_a_missing_final_score_is_named_with_its_command(config: Config):
    path = layout.run(config, "shapes", "random", 3).folder / "scores/epoch0010.jsonl"
    path.unlink()
    _refused(config, str(path), "star score --task geneval --images")


def test_a_checkpoint_that_was_not_scored_is_left_out(config: Config):
    (layout.run(config, "shapes", "random", 3).folder / "scores/epoch0004.jsonl").unlink()
    scores = results.scores(config)
    assert set(scores.loc[scores["method"] == "random", "epoch"]) == {4, 8, 10}


def test_unfinished_trainings_are_refused(config: Config):
    path = layout.run(config, "words", "star", 0).folder / "metrics.jsonl"
    _jsonl(path, _metric_rows("star")[:-1])
    _refused(config, str(path), "9 of 10 epochs", "star train")
    path.unlink()
    _refused(config, str(path), "no such file", "star train --task words --method star --seed 0")


def test_a_missing_picture_is_named(config: Config):
    picture = layout.run(config, "words", "star", 0).folder / "samples/epoch0010/00000/samples/0000.png"
    picture.unlink()
    _refused(config, str(picture), "star sample")
