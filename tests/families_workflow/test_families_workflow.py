"""`make test-families`: every family as the workflow, prompts to tables, killed once in the training and gone on with.

On tiny random pipelines of the true classes; numbers mean nothing, files must be there. Also the plan of every preset, from the
true configuration without weights. Minutes, so not part of `make test`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import families
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMPTS = ["a photo of a red circle", "a photo of a blue star", "a photo of a green ring", "a photo of a white square"]
EPOCHS = 6


class Workflow:
    """Snakemake on a family's tiny pipeline, in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder, self.run = folder, folder / "results/tiny/preference/star/seed0"
        families.make(name, folder / "base")
        (folder / "resources").symlink_to(ROOT / "resources")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        files = dict.fromkeys(("train", "validation", "test"), str(folder / "prompts.txt"))
        config = {
            "extends": str(ROOT / "config/miniature-quick.yaml"),
            "experiment": "tiny",
            "policy": {"model": str(folder / "base"), "resolution": [32, 48], "precision": "float32", "lora": {"rank": 4}},
            "rollout": {"groups": 2, "group_size": 4, "batch": 4, "steps": 3, "window": 1, "window_range": [0, 2]},
            "training": {"epochs": EPOCHS},
            "checkpoints": {"every": EPOCHS, "save_every": 1},
            "tracking": {"live": False, "prompts": 0},
            "evaluation": {"steps": 2, "images_per_prompt": 2, "batch": 8},
            "tasks": {"shapes": None, "letters": None, "preference": {"prompts": files, "reward": {"pickscore": 1.0}}},
            "methods": {"random": None},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        log = (folder / "log.txt").open("a")
        self.options = {"cwd": folder, "stdout": log, "stderr": log, "env": os.environ | {"HF_HUB_OFFLINE": "1"}}

    def command(self, *more: str) -> list[str]:
        named = ("--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--cores", "2")
        return [sys.executable, "-m", "snakemake", *named, *more]

    def metrics(self) -> list[dict]:
        file = self.run / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-4000:]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_prompts_to_tables_killed_once(name: str, tmp_path: Path) -> None:
    flow = Workflow(name, tmp_path)
    started = subprocess.Popen(flow.command(), start_new_session=True, **flow.options)
    while len(flow.metrics()) < 2:
        assert started.poll() is None, flow.log()
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    before = flow.metrics()
    assert 2 <= len(before) < EPOCHS, "the training was over before it could be killed"

    subprocess.run(flow.command("--unlock"), check=True, **flow.options)
    done = subprocess.run(flow.command("--rerun-incomplete"), **flow.options)
    assert done.returncode == 0, flow.log()
    after = flow.metrics()
    assert [row["epoch"] for row in after] == list(range(1, EPOCHS + 1))
    assert after[0]["reward_mean"] == before[0]["reward_mean"]
    table = (tmp_path / "results/tiny/tables/main.md").read_text()
    assert "star" in table and "flow_grpo" in table


@pytest.mark.parametrize("preset", ["sd35-medium", "sd35-large", "flux1-dev", "qwen-image", "z-image"])
def test_a_preset_is_planned_without_weights(preset: str, tmp_path: Path) -> None:
    """By the command, on a machine without them."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"a photo of a cup {i}" for i in range(80)) + "\n")
    file = str(tmp_path / "prompts.txt")
    own = ["--set", f"tasks.pickscore.prompts={{train: {file}, test: {file}, validation: {file}}}"]
    command = ["-m", "star.cli", "train", "--config", str(ROOT / f"config/{preset}.yaml"), *own, "--task", "pickscore"]
    done = subprocess.run(
        [sys.executable, *command, "--method", "star", "--plan"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"star/models/configurations/{preset}.json" in done.stdout
    peak = float(re.search(r"estimated peak of a process ([\d.]+) GiB", done.stdout)[1])
    assert 5 < peak < 75
