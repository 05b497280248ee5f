"""The workflow in a folder of its own, with a stand-in for the `star` command."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
# `python -m star.cli` finds this one first, because jobs run in the toy's folder.
STAND_IN = """
import os
import sys
import time
from pathlib import Path
import yaml

stage, *rest = sys.argv[1:]
several, option = {}, None
for word in rest:
    if word.startswith("--"):
        option, several[word] = word, []
    else:
        several[option].append(word)
given = {option: words[0] for option, words in several.items() if words}
with open("calls.txt", "a") as file:
    print(stage, *rest, file=file)
with open("offline.txt", "a") as file:
    print(stage, os.environ.get("HF_HUB_OFFLINE"), file=file)

def put(path, text="x"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

if stage == "prompts":
    put(given["--out"])
elif stage == "score":
    for file in several["--out"] + several.get("--guards", []):
        put(file)
elif stage == "train":
    if Path("wait").exists():
        put("training.pid", str(os.getpid()))
        time.sleep(900)
    config = yaml.safe_load(Path(given["--config"]).read_text())
    every = config["checkpoints"]["every"]
    for step in range(every, config["training"]["epochs"] + 1, every):
        put(f"{given['--out']}/checkpoints/epoch{step:04d}/state/progress.json")
        put(f"{given['--out']}/checkpoints/epoch{step:04d}/adapter/pytorch_lora_weights.safetensors")
        if Path("stop").exists():
            sys.exit("stopped after the first checkpoint")
elif stage == "sample":
    for folder in several["--out"]:
        put(f"{folder}/00000/samples/0000.png")
        put(f"{folder}/prompts.jsonl")
elif stage == "maps":
    put(given["--out"] + "/maps.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>"), put(given["--out"] + "/maps.png")
elif stage == "evidence":
    assert Path("results/toy/shapes/star/seed1/guards/epoch0004.json").exists()
    put(f"{given['--out']}/tables/comparisons.csv")
    for name in ("main", "controls", "steps", "cost", "guards", "update_size"):
        put(f"{given['--out']}/figures/{name}.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    put(f"{given['--out']}/tables.md")
elif stage == "report":
    put(given["--out"])
elif stage == "tables":
    for name in ("main", "categories", "cost", "ablation", "guards"):
        for form in ("csv", "md", "tex"):
            put(f"{given['--out']}/tables/{name}.{form}", "task,mean\\ngeneval,0.5\\n")
    for name in ("learning_curves", "scores", "categories", "samples"):
        put(f"{given['--out']}/figures/{name}.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
"""


class Toy:
    """A folder with a small configuration, where Snakemake runs with the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = yaml.safe_load((ROOT / "config/miniature.yaml").read_text())
        config["experiment"], config["policy"]["model"] = "toy", "base"
        config["training"] |= {"epochs": 4}
        config["checkpoints"] = {"every": 2}
        config["tasks"] = {
            "shapes": {"prompts": "shapes", "reward": {"geneval": 1.0}},
            "letters": {"prompts": "letters", "reward": {"ocr": 1.0}},
        }
        config["methods"] = {method: config["methods"][method] for method in ("flow_grpo", "star")}
        (folder / "toy.yaml").write_text(yaml.safe_dump(config))
        for weights in ("base", "resources/miniature/pickscore"):
            (folder / weights).mkdir(parents=True)
            (folder / weights / "model.safetensors").touch()
        (folder / "star").mkdir()
        (folder / "star/__init__.py").touch()
        (folder / "star/cli.py").write_text(STAND_IN)

    def command(self, *arguments: str) -> list[str]:
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        return [snakemake, "-s", str(ROOT / "Snakefile"), "--configfile", "toy.yaml", "--cores", "2", *arguments]

    def snakemake(self, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if path:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def planned(self, *arguments: str) -> tuple[dict[str, int], str]:
        """How many jobs of each rule a dry run plans, and everything that it printed."""
        done = self.snakemake("-n", *arguments)
        assert done.returncode == 0, done.stdout
        table = re.search(r"Job stats:\n.*\n.*\n((?:\w+ +\d+\n)+)", done.stdout)
        jobs = Counter()
        for name, n in (row.split() for row in table[1].splitlines()) if table else ():
            jobs[re.sub(r"^(sample|score)_(shapes|letters|preference)_(base|flow_grpo|star)", r"\1", name)] += int(n)
        return {name: n for name, n in jobs.items() if name not in ("all", "total")}, done.stdout

    def calls(self) -> list[str]:
        return (self.folder / "calls.txt").read_text().splitlines()
