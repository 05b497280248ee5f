"""The evidence on a simulated experiment with known differences: collected, refused where mixed, tabulated, drawn."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic

from star import cli, layout
from star.config import Config, load, run_settings
from star.errors import InputError
from star.evidence import data, questions, quotes

CONFIG = "config/experiments/evidence-miniature.yaml"
METHODS = """{
    flow_grpo: {allocation: {source: none}},
    star: {allocation: {source: attention}},
    random: {allocation: {source: attention, control: random}},
    inverse: {tasks: [shapes], allocation: {source: attention, control: inverse}},
    oracle: {tasks: [letters], allocation: {source: oracle}},
}"""
LEARNED = {
    "shapes": synthetic.LEARNED["geneval"],
    "letters": synthetic.LEARNED["ocr"],
    "preference": synthetic.LEARNED["pickscore"],
}
GAIN = {"star": 0.3, "random": -0.2, "inverse": -0.6}


def _settings(folder: Path) -> list[str]:
    return [f"results={folder}", "seeds=[0, 1, 2, 3]", f"methods={METHODS}"]


def _arguments(folder: Path, *more: str) -> list[str]:
    return ["evidence", "--config", CONFIG, *(word for s in _settings(folder) for word in ("--set", s)), *more]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of four seeds are trained; `inverse` has two of them, `oracle` one."""
    folder = tmp_path_factory.mktemp("results")
    config = load(CONFIG, _settings(folder))
    synthetic.fill(config.model_copy(update={"seeds": [0, 1, 2]}), GAIN, images=2)
    (folder / "evidence-miniature/shapes/inverse/seed2/trained.sha256").unlink()
    for seed in (1, 2):
        (folder / f"evidence-miniature/letters/oracle/seed{seed}/metrics.jsonl").unlink()
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    """What `star evidence` writes of it."""
    assert cli.main(_arguments(results, "--collect", "--data", f"{results}/data", "--out", f"{results}/out")) == 0
    return results / "out"


def _config(results: Path) -> Config:
    return load(CONFIG, _settings(results))


def _table(page: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(page / f"tables/{name}.csv")


def test_known_differences_are_found(page: Path):
    table = _table(page, "comparisons").set_index(["task", "method", "reference"])
    for task, learned in LEARNED.items():
        for method, reference, truth in (("star", "flow_grpo", 0.3), ("star", "random", 0.5), ("random", "flow_grpo", -0.2)):
            row = table.loc[task, method, reference]
            assert row["mean"] == pytest.approx(truth * learned, abs=0.15 * learned)
            assert row["low"] < row["mean"] < row["high"] and row["seeds"] == 3
            # What is learned grows on a straight line from 0, so the curve's mean height differs by half as much.
            assert row["area"] == pytest.approx(row["mean"] / 2, abs=0.03 * learned)
    assert table.loc["shapes", "inverse", "flow_grpo"]["seeds"] == 2
    assert "oracle" not in table.index.get_level_values("method")


def test_differences_are_those_of_the_scores_on_disk(results: Path, page: Path):
    found = _table(page, "comparisons").set_index(["task", "method", "reference"]).loc["letters", "star", "random"]
    means = {}  # every seed's has the same number of pictures
    for method in ("star", "random"):
        files = [results / f"evidence-miniature/letters/{method}/seed{k}/scores/epoch0032.jsonl" for k in (0, 1, 2)]
        scores = [[json.loads(line)["score"] for line in file.read_text().splitlines()] for file in files]
        means[method] = np.mean(scores, axis=1)
    differences = means["star"] - means["random"]
    assert found["mean"] == pytest.approx(differences.mean(), abs=1e-6)
    each = _table(page, "by_seed").set_index(["task", "method", "reference"]).loc[("letters", "star", "random")]
    assert each["seed"].tolist() == [0, 1, 2] and each["difference"].to_numpy() == pytest.approx(differences, abs=1e-6)


def test_the_page_says_what_it_has_and_what_not(page: Path):
    text = (page / "tables.md").read_text(encoding="utf-8")
    assert "flow_grpo (3), star (3), random (3), inverse (2)" in text
    assert "on letters (seeds that are missing): flow_grpo (1), star (1), random (1), oracle (4)" in text
    for letter in "ce":
        assert re.search(rf"## \({letter}\) [^\n]+\n\nNot measured\.", text)
    assert "star − random" in text and "star − oracle" not in text
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert {path.name for path in (page / "figures").iterdir()} == {Path(figure).name for figure in figures}
    assert all((page / figure).is_file() for figure in figures)
    assert not re.search(r"\bnan\b|\{", text.replace("`rollout: {", "").replace("`allocation: {", ""))


def test_the_page_has_the_numbers_of_the_tables(page: Path):
    text = (page / "tables.md").read_text(encoding="utf-8")
    row = _table(page, "comparisons").set_index(["task", "method", "reference"]).loc["letters", "star", "random"]
    assert f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" in text
    assert f"{row['area']:+.3f} [{row['area_low']:+.3f}, {row['area_high']:+.3f}]" in text


def test_a_person_can_quote_the_tables(results: Path, page: Path):
    row = _table(page, "comparisons").set_index(["task", "method", "reference"]).loc["letters", "star", "random"]
    epochs = _table(page, "thresholds").set_index(["task", "method"]).loc["letters", "star"]
    rows = [line for line in (page / "tables.md").read_text(encoding="utf-8").splitlines() if line.startswith("| letters")]
    text = (
        f"<!-- tables: {page.name} -->\nGain {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        f"<!-- comparisons: letters star random --> in {epochs['epochs']:.0f} [{epochs['epochs_low']:.0f}, "
        f"{epochs['epochs_high']:.0f}]<!-- thresholds: letters star / epochs --> epochs.\n\n{rows[-1]}\n"
        f"![Main]({page.name}/figures/main.svg)\n"
    )
    written = results / "page.md"
    written.write_text(text, encoding="utf-8")
    assert quotes.check(written) == 2
    written.write_text(text.replace(f"{row['mean']:+.3f}", f"{row['mean'] + 0.001:+.3f}"), encoding="utf-8")
    with pytest.raises(InputError, match="1 of its numbers"):
        quotes.check(written)


def test_failures_are_shares_of_all_pictures(page: Path):
    """The simulation lacks an object in the first of every two pictures."""
    table = _table(page, "failures").pivot(index="method", columns="failure", values="mean")
    assert table["absent"].to_numpy() == pytest.approx(0.5) and (table.drop(columns="absent") == 0).all(axis=None)


def test_global_attributes_shrink_the_gain(page: Path):
    table = _table(page, "attributes")
    rows = table[table["contrast"] & (table["quantity"] == "gain")].set_index("kind")
    assert rows.loc["dark", "mean"] == pytest.approx(-0.15 * LEARNED["preference"], abs=0.01) and rows.loc["dark", "high"] < 0
    areas = table[~table["contrast"] & (table["quantity"] == "effective_area")].set_index("kind")["mean"]
    assert areas.to_dict() == pytest.approx({"local": 0.7, "dark": 0.9, "light": 0.9, "one_color": 0.7})


def test_collecting_again_gives_equal_bytes(results: Path, page: Path, tmp_path: Path):
    written, missing = data.collect(_config(results), tmp_path)
    assert len(written) == len(list((results / "data").iterdir())) and len(missing) == 4 * 14 - len(written)
    for path in written:
        assert path.read_bytes() == (results / "data" / path.name).read_bytes()


def test_runs_of_other_settings_are_refused(results: Path, page: Path, capsys: pytest.CaptureFixture):
    mixed = _arguments(
        results, "--data", f"{results}/data", "--out", f"{results}/mixed", "--set", "optimizer.learning_rate=0.5"
    )
    assert cli.main(mixed) == 2
    assert "of a run with other `training`" in capsys.readouterr().err and not (results / "mixed").exists()
    assert cli.main([*mixed[:-2], "--set", "evaluation.steps=3"]) == 2
    assert "other `sampling`" in capsys.readouterr().err
    assert cli.main([*mixed, "--collect", "--data", f"{results}/new"]) == 2
    assert "settings.json: other settings than the configuration's (optimizer)" in capsys.readouterr().err


def _in_precision(path: Path, precision: str) -> None:
    content = json.loads(gzip.decompress(path.read_bytes()))
    content["environment"]["precision"] = precision
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("base", "0123", "of different base, which no table may mix"),
        ("training", "another", r"letters-star-seed1.json.gz \(another\): of different training code"),
        ("sampling", "another", "of different sampling code"),
        ("scorer", "another", "scored by different scorers"),
        ("by", "another", "measured by different models"),
        (
            "precision",
            "torch.bfloat16",
            r"float32\) and .*letters-star-seed1.json.gz \(torch.bfloat16\): of different precision",
        ),
        (None, None, "damaged"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    results: Path, page: Path, tmp_path: Path, key: str | None, value: str, words: str
):
    for path in (results / "data").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "letters-star-seed1.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    if key == "base":
        content["base"] = value
    elif key in ("training", "sampling"):
        content["code"][key] = value
    elif key == "precision":
        _in_precision(tmp_path / "letters-star-seed0.json.gz", "torch.float32")
        content["environment"][key] = value
    elif key:
        part = content["scores" if key == "scorer" else "guards"]
        part[key] = [value] * len(part[key])
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if key else gzip.compress(text)[:100])
    with pytest.raises(InputError, match=words):
        data.read(_config(results), tmp_path)


def test_scores_without_reasons_are_refused(results: Path, page: Path, tmp_path: Path):
    for path in (results / "data").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "shapes-star-seed1.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    del content["scores"]["failure"]
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(InputError, match="one says what is wrong with its images"):
        data.read(_config(results), tmp_path)


def test_a_run_of_several_versions_of_the_code_is_not_collected(results: Path, page: Path, tmp_path: Path):
    file = layout.run(_config(results), "letters", "star", 1).samples(32) / "code.txt"
    before = file.read_text(encoding="utf-8")
    file.write_text(f"{before}another\n", encoding="utf-8")
    try:
        with pytest.raises(InputError, match=r"code.txt \(another\): made by several versions of the code"):
            data.collect(_config(results), tmp_path)
    finally:
        file.write_text(before, encoding="utf-8")


def test_one_seed_is_no_evidence(results: Path, page: Path, tmp_path: Path):
    for path in (results / "data").glob("*seed0*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="no method of `evidence-miniature` with two seeds"):
        data.read(_config(results), tmp_path)


def test_the_configurations_answer_every_question():
    config, replication = load(CONFIG), load("config/experiments/evidence-replication.yaml")
    assert questions.answered(config) == [q for q in questions.QUESTIONS if q.letter != "k"]
    assert "k" in [q.letter for q in questions.answered(replication)]
    asked = {method for question in questions.QUESTIONS for pair in question.pairs for method in pair}
    asked |= {method for pair in questions.MAIN for method in pair}
    assert asked == set(config.methods) | set(replication.methods)


def test_the_wrong_block_is_the_one_that_localises_worst():
    """By the table of docs/results/miniature.md, which was measured on the embedded base."""
    page = Path("docs/results/miniature.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| shapes \| (\d) \|((?: \d\.\d+ \|){8})$", page, re.MULTILINE)
    mean = {int(block): sum(float(x) for x in gains.split("|")[:-1]) / 8 for block, gains in rows}
    assert len(mean) == 4
    settings = {name: run_settings(load(CONFIG), "shapes", name).allocation.blocks for name in ("star", "wrong_block")}
    assert settings == {"star": [max(mean, key=mean.get)], "wrong_block": [min(mean, key=mean.get)]}
