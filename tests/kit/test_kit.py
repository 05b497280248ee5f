"""`star kit` on the miniature and on Stable Diffusion 3.5's layout, with tiny random weights: every objective, one file."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from trainings import ROOT, SMALL

from star.cli import main
from star.config import OBJECTIVES

TINY = (
    "rollout.steps=3",
    "tracking.prompts=2",
    "rollout.group_size=4",
    "rollout.batch=4",
    "evaluation.steps=2",
    "policy.lora={rank: 4, alpha: 8}",
)
TWO_FAMILIES = ("guard", "nft")
SD35 = (
    *("policy.resolution=64", "policy.max_sequence_length=16", "policy.precision=float32", "policy.device=cpu"),
    *("scorers.device=cpu", "scorers.workers=0", "prompts.ocr=generated", "allocation.blocks=[1]"),
    "tasks.ocr.reward={pickscore: 1.0}",  # nothing can be read in random pictures
    *(f"scorers.pickscore.{part}=resources/miniature/pickscore" for part in ("model", "processor")),
)


def _kit(out: Path, *command: str) -> tuple[int, dict, list[str]]:
    code = main(["kit", "--out", str(out), *command])
    with zipfile.ZipFile(out.with_suffix(".zip")) as packed:
        names = packed.namelist()
        return code, json.loads(packed.read(f"{out.name}/kit.json")), names


def _without_letters(folder: Path) -> str:
    """The miniature without the task whose scorer takes longest to build."""
    (folder / "kit.yaml").write_text("extends: miniature.yaml\ntasks: {letters: null}\n")
    return str(folder / "kit.yaml")


def _sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_everything_is_tried_and_one_file_has_it(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["--config", _without_letters(tmp_path), "--task", "preference"]
    command += _sets(*SMALL, *TINY, "training.updates_per_epoch=2", f"policy.model={random_base}")
    _, found, names = _kit(tmp_path / "kit", *command)
    trials = found["trials"]
    assert all(trial["fine"] for trial in trials.values()), trials
    assert {f"objective {name}" for name in OBJECTIVES} < set(trials) and "scorer pickscore" in trials
    for name in OBJECTIVES:
        tried = trials[f"objective {name}"]
        row, planned = tried["metrics"], tried["planned_bytes"]
        assert row["epoch"] == 1 and row["images"] == 8 and row["grad_norm"] > 0  # the least that fills two updates
        assert row["peak_memory_bytes"] > 0 and planned["peak"] == max(planned["phases"].values()) > planned["parts"]["adapter"]
        assert ("every ratio 1" in tried["said"]) == ("ratio_mean" in row) and "s an image" in tried["said"]
        assert {f"kit/{name}/pictures/epoch{epoch:04d}.png" for epoch in (0, 1)} <= set(names)
    assert len([name for name in names if name.startswith("kit/samples/")]) == 8
    assert not any(name.endswith(".safetensors") for name in names)
    assert found["environment"]["torch"] and found["config"]["experiment"] == "miniature"

    # A second call does nothing again, and takes along what the official detector said meanwhile.
    (tmp_path / "kit/verdicts.jsonl").write_text('{"correct": true}\n{"correct": false}\n')
    before = (tmp_path / "kit/nft/metrics.jsonl").read_bytes()
    capsys.readouterr()
    _, again, _ = _kit(tmp_path / "kit", *command)
    assert again["trials"]["official verdicts"]["said"].startswith("1 of 2 pictures")
    assert (tmp_path / "kit/nft/metrics.jsonl").read_bytes() == before
    assert "ok   official verdicts: 1 of 2" in capsys.readouterr().out


def test_in_the_layout_of_sd35_missing_weights_are_named_and_the_rest_is_tried(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("star.kit.trial.OBJECTIVES", TWO_FAMILIES)
    words = ["OPEN", "STAR", "MILK", "EXIT", "TAXI", "BOOK", "RAIN", "GOLD"]
    (tmp_path / "signs.txt").write_text("".join(f'a sign that says "{word}"\n' for word in words))
    few = f"tasks.ocr.prompts={{train: {tmp_path}/signs.txt, validation: {tmp_path}/signs.txt, test: {tmp_path}/signs.txt}}"
    command = ["--config", "config/sd35-medium.yaml", "--task", "ocr"]
    command += _sets(*TINY, *SD35, few, f"policy.model={random_base}")
    code, found, _ = _kit(tmp_path / "kit", *command)
    trials = found["trials"]
    assert code == 1 and not trials["scorer geneval"]["fine"] and "scorers.geneval" in trials["scorer geneval"]["said"]
    assert all(trials[f"objective {name}"]["fine"] for name in TWO_FAMILIES), trials
    assert trials["scorer pickscore"]["fine"] and trials["pictures"]["fine"]


def test_an_epoch_without_advantage_is_not_called_fine(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("star.kit.trial.OBJECTIVES", ["flow_grpo"])
    monkeypatch.setattr("star.training.rollout.np.column_stack", lambda columns: np.full((len(columns[0]), len(columns)), 0.5))
    sets = _sets(*SMALL, *TINY, f"policy.model={random_base}")
    code, found, _ = _kit(tmp_path / "kit", "--config", _without_letters(tmp_path), "--task", "shapes", *sets)
    tried = found["trials"]["objective flow_grpo"]
    assert code == 1 and not tried["fine"] and "no image had an advantage" in tried["said"]
