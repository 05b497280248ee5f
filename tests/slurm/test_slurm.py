"""The pipeline on a real SLURM: through sbatch, cancelled and preempted in the middle, and with the results of a local run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cluster import cluster, install
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
EPOCHS, CHECKPOINT_EVERY = 6, 3
RUN = Path("results/slurm/ocr/star/seed0")
PATIENCE = 600  # seconds; a busy machine is slow


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a cluster of one node."""
    install()
    with cluster() as environment:
        yield environment


class Pipeline:
    """A folder with a smaller config/miniature-quick.yaml, in which Snakemake runs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        config = yaml.safe_load((ROOT / "config/miniature-quick.yaml").read_text())
        resources = str(ROOT / "resources/miniature")
        config["experiment"] = "slurm"
        config["policy"]["model"] = f"{resources}/base"
        config["scorers"] |= {"pickscore_model": f"{resources}/pickscore", "pickscore_processor": f"{resources}/pickscore"}
        config["training"] |= {"epochs": EPOCHS, "checkpoint_every": CHECKPOINT_EVERY}
        config["evaluation"] |= {"steps": 2}
        config["tasks"] = {"ocr": {"reward": {"ocr": 1.0}}}
        config["methods"] = {"star": config["methods"]["star"]}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake; what it prints goes to snakemake.log."""
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        command = [snakemake, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", *arguments]
        with (self.folder / "snakemake.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def submit(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake with the profile of the project; only that it looks at its jobs more often."""
        return self.start("--workflow-profile", "slurm", "--slurm-init-seconds-before-status-checks", "3", *arguments)

    def log(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def training_job(self) -> str:
        """The number of the training that SLURM runs."""
        jobs = self.slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
        (number,) = [line.split()[0] for line in jobs if "rule_train" in line]
        return number

    def epochs(self, run: Path) -> int:
        file = self.folder / run / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0


def until(true: Callable[[], object], pipeline: Pipeline, snakemake: subprocess.Popen) -> None:
    """Wait for something while Snakemake runs."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end and snakemake.poll() is None, pipeline.log()[-5000:]
        time.sleep(0.2)


def finish(pipeline: Pipeline, snakemake: subprocess.Popen) -> None:
    """Wait for Snakemake's good end."""
    try:
        assert snakemake.wait(PATIENCE) == 0, pipeline.log()[-5000:]
    finally:
        snakemake.kill()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline, run whole on this machine."""
    pipeline = Pipeline(tmp_path_factory.mktemp("local"), dict(os.environ))
    finish(pipeline, pipeline.start("--cores", "2"))
    return pipeline


@pytest.fixture(scope="module")
def cancelled(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline, run whole through SLURM; its training was cancelled in the middle."""
    pipeline = Pipeline(tmp_path_factory.mktemp("cancelled"), slurm)
    snakemake = pipeline.submit()
    until(lambda: pipeline.epochs(RUN) >= 2, pipeline, snakemake)
    pipeline.slurm("scancel", pipeline.training_job())
    finish(pipeline, snakemake)
    return pipeline


def test_every_job_goes_through_sbatch(cancelled: Pipeline) -> None:
    log = cancelled.log()
    planned = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", log, re.MULTILINE)}
    here = planned["log"] + planned["log_tables"] + planned["all"]
    submitted = re.findall(r"submitted with SLURM jobid (\d+)", log)
    assert len(set(submitted)) == planned["total"] - here + 1  # one was submitted again


def test_a_cancelled_training_writes_a_checkpoint_and_goes_on_from_there(cancelled: Pipeline) -> None:
    log = cancelled.log()
    assert len(re.findall("SLURM status is: 'CANCELLED'", log)) == 1 and log.count("Trying to restart job") == 1
    # Snakemake prints the log of the failed job: SIGTERM reached the training, and SLURM let it finish what it had to.
    stopped = re.search(r"star train: stopped by SIGTERM in epoch \d+; the same command goes on from epoch (\d+)", log)
    assert stopped and int(stopped[1]) >= 2
    again = (cancelled.folder / "results/slurm/logs/train/ocr-star-seed0.log").read_text()
    assert f" {stopped[1]}/{EPOCHS} " in again and f" 0/{EPOCHS} " not in again


def test_the_results_are_those_of_a_local_run(cancelled: Pipeline, local: Pipeline) -> None:
    def metrics(pipeline: Pipeline) -> list[dict]:
        rows = [json.loads(row) for row in (pipeline.folder / RUN / "metrics.jsonl").read_text().splitlines()]
        machine = ("seconds_", "peak_memory_")
        return [{key: value for key, value in row.items() if not key.startswith(machine)} for row in rows]

    assert len(metrics(local)) == EPOCHS and metrics(cancelled) == metrics(local)
    for step in range(CHECKPOINT_EVERY, EPOCHS + 1, CHECKPOINT_EVERY):
        # Not the bytes of the files: the entries of their headers stand in an order of their own in every process.
        adapter = RUN / f"checkpoints/step{step}/adapter/pytorch_lora_weights.safetensors"
        here, there = load_file(local.folder / adapter), load_file(cancelled.folder / adapter)
        assert here.keys() == there.keys() and all(here[name].equal(there[name]) for name in here)
    for file in (RUN / f"scores/step{EPOCHS}.jsonl", "results/slurm/tables/main.csv", "results/slurm/tables/main.md"):
        assert (cancelled.folder / file).read_bytes() == (local.folder / file).read_bytes(), file


def test_a_preempted_training_is_queued_again_and_goes_on(cancelled: Pipeline) -> None:
    run = RUN.with_name("seed1")
    snakemake = cancelled.submit(f"{run}/trained.sha256")
    until(lambda: cancelled.epochs(run) >= 2, cancelled, snakemake)
    job = cancelled.training_job()
    everything = f"--ntasks={os.cpu_count()}"
    cancelled.slurm("sbatch", "--partition=urgent", everything, "--output=/dev/null", "--wrap", "sleep 1")
    until(lambda: cancelled.slurm("squeue", "--noheader", "--format=%T", f"--job={job}") == "PENDING", cancelled, snakemake)
    assert "stopped by SIGTERM in epoch" in (cancelled.folder / "results/slurm/logs/train/ocr-star-seed1.log").read_text()
    cancelled.slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM itself waits two minutes
    finish(cancelled, snakemake)
    assert cancelled.epochs(run) == EPOCHS
    assert cancelled.log().count("Trying to restart job") == 1  # the cancelled one; SLURM started this one again
    assert f" 0/{EPOCHS} " not in (cancelled.folder / "results/slurm/logs/train/ocr-star-seed1.log").read_text()
