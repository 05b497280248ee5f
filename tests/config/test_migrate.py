"""Configurations of earlier versions: refused with the new name, rewritten by `star config --migrate`."""

from pathlib import Path

import pytest
import yaml

from star import cli
from star.config import load, parse
from star.config.migrate import RENAMED, migrate
from star.errors import InputError

ROOT = Path(__file__).parents[2]
OLD = """
experiment: mine
seeds: [0]
prompts:
  world: miniature
  files: {pickscore: {train: mine.txt}}
policy: {model: resources/miniature/base, resolution: 64, guidance: 1.0}
rollout: {steps: 8}
training:
  {epochs: 4, learning_rate: 2.5e-3, clip_range: 1.0e-3, kl_beta: 0.004, checkpoint_every: 2, save_every: 1, keep_states: 3}
allocation: {blocks: [1], inverse: false}
evaluation: {steps: 10}
scorers: {detector: miniature, detector_batch: 3, ocr_engine: rapidocr, ocr_mode: line, pickscore_dtype: bfloat16, workers: 0}
tasks:
  geneval: {reward: {geneval: 1.0}, overrides: {training: {epochs: 6, checkpoint_every: 3}}}
  pickscore: {reward: {pickscore: 1.0}}
methods:
  flow_grpo: {allocation: {source: none}}
  random: {allocation: {source: random, sharpness: 2.0}}
  inverse: {tasks: [geneval], allocation: {source: attention, inverse: true}}
  per_location: {training: {learning_rate: 0.5}, allocation: {source: attention, objective: per_location}}
"""
NEW = """
experiment: mine
seeds: [0]
prompts: {world: miniature}
policy: {model: resources/miniature/base, resolution: 64, guidance: 1.0}
rollout: {steps: 8}
objective: {clip_range: 1.0e-3, kl_weight: 0.004}
optimizer: {learning_rate: 2.5e-3}
training: {epochs: 4}
checkpoints: {every: 2, save_every: 1, keep_states: 3}
allocation: {blocks: [1]}
evaluation: {steps: 10}
scorers:
  workers: 0
  geneval: {detector: miniature, batch: 3}
  ocr: {engine: rapidocr, mode: line}
  pickscore: {precision: bfloat16}
tasks:
  shapes: {prompts: shapes, reward: {geneval: 1.0}, overrides: {training: {epochs: 6}, checkpoints: {every: 3}}}
  preference: {prompts: {train: mine.txt, set: preference}, reward: {pickscore: 1.0}}
methods:
  flow_grpo: {allocation: {source: none}}
  random: {allocation: {source: attention, control: random, sharpness: 2.0}}
  inverse: {tasks: [shapes], allocation: {source: attention, control: inverse}}
  per_location: {optimizer: {learning_rate: 0.5}, objective: {form: per_location}, allocation: {source: attention}}
"""


def test_an_old_configuration_becomes_the_new_one() -> None:
    old, new = yaml.safe_load(OLD), yaml.safe_load(NEW)
    assert migrate(old) == new and migrate(new) == new
    assert old == yaml.safe_load(OLD)  # is not changed itself
    assert parse(new, "new").tasks["preference"].prompts.train == "mine.txt"


def test_the_command_rewrites_a_file_and_keeps_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OLD)
    assert cli.main(["config", "--migrate", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "- training.kl_beta: 0.004" in printed and "+ objective.kl_weight: 0.004" in printed
    assert load(file) == parse(yaml.safe_load(NEW), "new") and (tmp_path / "mine.yaml.old").read_text() == OLD
    assert cli.main(["config", "--migrate", str(file)]) == 2  # mine.yaml.old is there already
    assert cli.main(["config", "--migrate", f"{file}.old", "--out", str(tmp_path / "other.yaml")]) == 0
    assert load(tmp_path / "other.yaml") == load(file) and (tmp_path / "mine.yaml.old").read_text() == OLD


@pytest.mark.parametrize("old", RENAMED)
def test_every_renamed_key_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    said = rf"{old}: is now {RENAMED[old]}".replace(".", r"\.")
    (tmp_path / "mine.yaml").write_text(f"extends: {ROOT}/config/miniature.yaml\n{section}: {{{key}: 1}}\n")
    with pytest.raises(InputError, match=rf"mine\.yaml: {said}; `star config --migrate .*mine\.yaml` rewrites the file$"):
        load(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match=rf"^command line: {said}$"):
        load(ROOT / "config/miniature.yaml", [f"{old}=1"])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("methods.random.allocation.source=random", "source: attention with control: random"),
        ("methods.mine={allocation: {inverse: true}}", r"allocation\.control: inverse"),
        ("tasks.shapes.overrides.training.kl_beta=1", r"objective\.kl_weight"),
        ("prompts.files={}", r"tasks\.<name>\.prompts"),
    ],
)
def test_old_values_and_places_are_refused_too(said: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(ROOT / "config/miniature.yaml", [said])


def test_a_task_without_prompts_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"tasks\.mine\.prompts: Field required"):
        load(ROOT / "config/miniature.yaml", ["tasks.mine={reward: {ocr: 1}}"])


def test_the_resolved_configuration_is_printed(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["config", "--config", str(ROOT / "config/miniature-quick.yaml"), "--set", "seeds=[4]"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seeds"] == [4] and printed["rollout"]["steps"] == 8 and printed["training"]["epochs"] == 2
