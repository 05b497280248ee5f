"""What docs/extend says, done: a user's reward, prompts and base, each by one file and a few lines of configuration."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from records import asked
from scorer_settings import scorers
from trainings import SMALL, metrics

from star import cli
from star.config import load
from star.config.key import function_file
from star.errors import InputError
from star.prompts import make
from star.scoring.scorer import make_scorer

ROOT = Path(__file__).parents[2]
REWARD = """
import numpy as np

def brightness(images, records):
    return [float(np.mean(image)) / 255 for image in images]

def one_number(images, records):
    return 0.5
"""
TRAIN = "a red circle above a blue square\na green star\ntwo blue triangles\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a reward and prompts."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "train.txt").write_text(TRAIN)
    (tmp_path / "test.txt").write_text("a yellow cross\na red star\n")
    for name in ("resources", "config"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # where an earlier test's folder would be found first
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    return tmp_path


def _config(mine: Path, base: Path, reward: dict, workers: int = 0) -> Path:
    """The lines of docs/extend/index.md in a copy of config/miniature.yaml."""
    config = yaml.safe_load((ROOT / "config/miniature.yaml").read_text())
    prompts = {"train": "train.txt", "test": "test.txt", "set": "preference"}
    config["tasks"] = {"mine": {"prompts": prompts, "reward": reward}}
    config["policy"]["model"] = str(base)
    (mine / "my.yaml").write_text(yaml.safe_dump(config))
    small = load(mine / "my.yaml", [*SMALL, "training.epochs=1", f"scorers.workers={workers}"])
    (mine / "my.yaml").write_text(yaml.safe_dump(small.model_dump(mode="json")))
    return mine / "my.yaml"


def test_all_three_from_prompts_to_scores(mine: Path, random_base: Path):
    config = _config(mine, random_base, {"pickscore": 1.0, "my_reward:brightness": 0.5}, workers=1)
    of_run = ["--config", str(config), "--task", "mine"]
    assert cli.main(["prompts", *of_run, "--split", "train", "--out", "train.jsonl"]) == 0
    assert cli.main(["prompts", *of_run, "--split", "test", "--out", "test.jsonl"]) == 0
    assert cli.main(["train", *of_run, "--method", "star", "--prompts", "train.jsonl", "--out", "run"]) == 0
    (row,) = metrics(mine / "run")
    assert 0 < row["reward_my_reward:brightness"] < 1
    assert row["reward_mean"] == pytest.approx(row["reward_pickscore"] + 0.5 * row["reward_my_reward:brightness"])
    adapter = "run/checkpoints/epoch0001/adapter"
    assert (
        cli.main(["sample", "--config", str(config), "--prompts", "test.jsonl", "--out", "images", "--adapter", adapter]) == 0
    )
    assert cli.main(["score", *of_run, "--images", "images", "--out", "scores.jsonl"]) == 0
    scored = [json.loads(line)["prompt"] for line in (mine / "scores.jsonl").read_text().splitlines()]
    assert scored == ["a yellow cross"] * 4 + ["a red star"] * 4


def test_the_reward_is_the_functions(mine: Path):
    images = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)])
    scorer = make_scorer("my_reward:brightness", scorers())
    assert [line.reward for line in scorer(images, [asked("one"), asked("two")])] == pytest.approx([0, 0.2])
    before = scorer.fingerprint
    (mine / "my_reward.py").write_text(REWARD + "\n# edited\n")
    assert function_file("my_reward:brightness") == mine / "my_reward.py"
    assert make_scorer("my_reward:brightness", scorers()).fingerprint != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:f", "no module `no_such_module`"),
        ("my_reward:f", "has no function `f`"),
        ("my_reward:one_number", "each"),
    ],
)
def test_what_is_no_reward_is_named(mine: Path, name: str, words: str):
    with pytest.raises(InputError, match=words):
        make_scorer(name, scorers())(np.zeros((2, 8, 8, 3), np.uint8), [asked("one"), asked("two")])


def test_a_reward_without_a_function_is_refused_before_work(mine: Path, random_base: Path):
    with pytest.raises(InputError, match=r"tasks\.mine\.reward"):
        _config(mine, random_base, {"brightness": 1.0})


def test_prompts_get_what_they_lack(mine: Path, random_base: Path):
    config = load(_config(mine, random_base, {"pickscore": 1.0}))
    first, *_, last = make.records(config, "mine", "train")
    assert [span.text for span in first.core] == ["red", "circle", "above", "blue", "square"]
    assert last.id == "mine-00002" and last.metadata["prompt"] == "two blue triangles"
    assert len(make.records(config, "mine", "validation")) > 3  # not named: the world's own


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("ocr", '{"prompt": "a sign"}', r"mine\.jsonl:2: .*double quotes"),
        ("geneval", '{"prompt": "a cat"}', r"mine\.jsonl:2: no `metadata\.include`"),
        ("geneval", '{"prompt": "a dog", "metadata": {"include": [{"class": "cat", "count": 1}]}}', r"mine\.jsonl:2: .*'cat'"),
        ("pickscore", "{", r"mine\.jsonl:2: not JSON"),
        ("pickscore", '{"prompt": " "}', r"mine\.jsonl:2: no prompt"),
        ("pickscore", '{"prompt": "x", "id": "one"}', "the same id"),
    ],
)
def test_prompts_that_do_not_fit_are_named(tmp_path: Path, task: str, line: str, words: str):
    good = {"prompt": 'a cat that says "HI"', "id": "one", "metadata": {"include": [{"class": "cat", "count": 1}]}}
    (tmp_path / "mine.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
    files = f"{{train: train.txt, test: {tmp_path}/mine.jsonl}}"
    config = load("config/miniature.yaml", [f"tasks.mine={{prompts: {files}, reward: {{{task}: 1.0}}}}"])
    with pytest.raises(InputError, match=words):
        make.records(config, "mine", "test")
