"""Exit codes and messages of the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from star import cli

ROOT = Path(__file__).parents[1]
STAGES = (
    "prompts",
    "train",
    "sample",
    "score",
    "tables",
    "maps",
    "log",
    "fetch",
    "doctor",
    "compare",
    "votes",
    "export",
    "pretrain-miniature",
)


@pytest.mark.parametrize("stage", STAGES)
def test_help_exits_zero(stage: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([stage, "--help"])
    assert stopped.value.code == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompts", "--config", "none.yaml", "--task", "letters", "--split", "test", "--out", "x"], "none.yaml: no such"),
        (
            ["train", "--set", "training.epoch=1", "--task", "letters", "--method", "star", "--out", "x"],
            "training.epoch: no such key",
        ),
        (["train", "--task", "letters", "--method", "ppo", "--out", "x"], "ppo"),
        (["sample", "--prompts", "none.jsonl", "--out", "x"], "none.jsonl: no such prompt file"),
        (["score", "--scorer", "ocr", "--images", "none", "--out", "x"], "none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ["--config", str(ROOT / "config/miniature.yaml")] if "--config" not in arguments else []
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, *config]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_unknown_stage_exits_two_and_star_is_installed() -> None:
    done = subprocess.run([Path(sys.executable).with_name("star"), "polish"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice" in done.stderr


def test_a_stage_imports_no_torch_before_it_needs_it() -> None:
    heavy = ("torch", "diffusers", "mlflow")
    code = f"import sys, star.cli, star.config, star.prompts; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["doctor", "--set", "policy.model=no/such/folder"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (failed,) = [line for line in lines if line.startswith("FAIL")]
    assert "policy.model" in failed and "no/such/folder" in failed
    assert any("package torch 2.13.0" in line for line in lines)
