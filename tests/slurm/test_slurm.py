"""The pipeline on a real SLURM: through sbatch, cancelled and preempted in the middle, and with the results of a local run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from cluster import cluster, install

from star.config import load

ROOT = Path(__file__).parents[2]
EPOCHS, CHECKPOINT_EVERY = 6, 3
RUN = Path("results/slurm/letters/star/seed0")
PATIENCE = 900  # seconds; a busy machine is slow


class Pipeline:
    """A folder with a smaller config/miniature-quick.yaml, in which Snakemake runs; what it prints goes to snakemake.log."""

    def __init__(self, folder: Path, environment: dict[str, str], machines: int = 1) -> None:
        self.folder, self.environment = folder, environment
        config = load(ROOT / "config/miniature-quick.yaml").model_dump(mode="json")
        resources = str(ROOT / "resources/miniature")
        config["experiment"] = "slurm"
        config["policy"]["model"] = f"{resources}/base"
        config["scorers"]["pickscore"] |= {"model": f"{resources}/pickscore", "processor": f"{resources}/pickscore"}
        config["training"] |= {"epochs": EPOCHS}
        config["checkpoints"] |= {"every": CHECKPOINT_EVERY}
        config["rollout"]["batch"] = 6  # two micro-batches an optimizer step: one for each of two processes
        config["evaluation"] |= {"steps": 2}
        config["compute"] = {"processes": machines, "machines": machines}
        config["tasks"] = {"letters": {"prompts": "letters", "reward": {"ocr": 1.0}}}
        config["methods"] = {"star": config["methods"]["star"]}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Snakemake, started at the beginning of the block; at its end it must come to a good one."""
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        command = [snakemake, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", *arguments]
        with (self.folder / "snakemake.log").open("a") as log:
            self.snakemake = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield
            assert self.snakemake.wait(PATIENCE) == 0, self.log()[-5000:]
        finally:
            if self.snakemake.poll() is None:
                os.killpg(self.snakemake.pid, signal.SIGKILL)

    def submitting(self, *arguments: str) -> contextmanager:
        """As `running`, with the project's profile, looking at jobs more often than that says."""
        return self.running("--workflow-profile", "slurm", "--slurm-init-seconds-before-status-checks", "3", *arguments)

    def until(self, true: Callable[[], object]) -> None:
        """Wait for something while Snakemake runs."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end and self.snakemake.poll() is None, self.log()[-5000:]
            time.sleep(0.2)

    def log(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def training_log(self, seed: int) -> str:
        return (self.folder / f"results/slurm/logs/train/letters-star-seed{seed}.log").read_text()

    def metrics(self, run: Path) -> list[dict]:
        """What an epoch's line says, but for what the machine has to do with it."""
        file = self.folder / run / "metrics.jsonl"
        rows = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
        return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "peak_memory_"))} for row in rows]

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def training_job(self) -> str:
        """The number of the training that SLURM runs."""
        jobs = self.slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
        (number,) = [line.split()[0] for line in jobs if "rule_train" in line]
        return number


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a cluster of two nodes, with half of this machine's cores each."""
    install()
    with cluster() as environment:
        yield environment


@pytest.fixture(scope="module")
def pipelines(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Pipeline]:
    """The whole pipeline through SLURM, its training cancelled in the middle; and beside it, to its tables, without SLURM."""
    submitted, local = (
        Pipeline(tmp_path_factory.mktemp("slurm"), slurm),
        Pipeline(tmp_path_factory.mktemp("local"), dict(os.environ)),
    )
    with local.running("--cores", "1", "results/slurm/tables/main.md"), submitted.submitting():
        submitted.until(lambda: len(submitted.metrics(RUN)) >= 2)
        submitted.slurm("scancel", submitted.training_job())
    return submitted, local


def test_every_job_goes_through_sbatch(pipelines: tuple[Pipeline, Pipeline]) -> None:
    log = pipelines[0].log()
    planned = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", log, re.MULTILINE)}
    here = planned["log"] + planned["log_tables"] + planned["all"]
    numbers = re.findall(r"submitted with SLURM jobid (\d+)", log)
    assert len(set(numbers)) == planned["total"] - here + 1  # one was submitted again


def test_a_cancelled_training_writes_a_checkpoint_and_goes_on_from_there(pipelines: tuple[Pipeline, Pipeline]) -> None:
    log = pipelines[0].log()
    assert log.count("SLURM status is: 'CANCELLED'") == 1 and log.count("Trying to restart job") == 1
    # Snakemake prints the log of the failed job: SIGTERM reached the training, and it had the time that it needed.
    stopped = re.search(r"star train: stopped by SIGTERM in epoch \d+; the same command goes on from epoch (\d+)", log)
    assert stopped and int(stopped[1]) >= 2
    again = pipelines[0].training_log(seed=0)
    assert f" {stopped[1]}/{EPOCHS} " in again and f" 0/{EPOCHS} " not in again


def test_the_results_are_those_of_a_local_run(pipelines: tuple[Pipeline, Pipeline]) -> None:
    submitted, local = pipelines
    assert len(local.metrics(RUN)) == EPOCHS and submitted.metrics(RUN) == local.metrics(RUN)
    adapters = [f"checkpoints/epoch{n:04d}/adapter/pytorch_lora_weights.safetensors" for n in (CHECKPOINT_EVERY, EPOCHS)]
    files = [RUN / name for name in (*adapters, f"scores/epoch{EPOCHS:04d}.jsonl")]
    for file in (*files, Path("results/slurm/tables/main.csv"), Path("results/slurm/tables/main.md")):
        assert (submitted.folder / file).read_bytes() == (local.folder / file).read_bytes(), file


def test_a_preempted_training_is_queued_again_and_goes_on(pipelines: tuple[Pipeline, Pipeline]) -> None:
    submitted, run = pipelines[0], RUN.with_name("seed1")
    with submitted.submitting(f"{run}/trained.sha256"):
        submitted.until(lambda: len(submitted.metrics(run)) >= 2)
        job = submitted.training_job()
        submitted.slurm("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 1")
        submitted.until(lambda: submitted.slurm("squeue", "--noheader", "--format=%T", f"--job={job}") == "PENDING")
        assert "stopped by SIGTERM in epoch" in submitted.training_log(seed=1)
        submitted.slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # by itself SLURM waits two minutes
    assert len(submitted.metrics(run)) == EPOCHS and f" 0/{EPOCHS} " not in submitted.training_log(seed=1)
    assert submitted.log().count("Trying to restart job") == 1  # the cancelled one: this one was for SLURM to start again


def test_a_training_over_two_machines_gives_the_numbers_of_one_and_goes_on_after_scancel(
    slurm: dict[str, str], pipelines: tuple[Pipeline, Pipeline], tmp_path: Path
) -> None:
    over_two, local = Pipeline(tmp_path, slurm, machines=2), pipelines[1]
    with over_two.submitting(f"{RUN}/trained.sha256"):
        over_two.until(lambda: len(over_two.metrics(RUN)) >= 2)
        job = over_two.training_job()
        assert over_two.slurm("squeue", "--noheader", "--format=%D %N", f"--job={job}") == "2 node[1-2]"
        over_two.slurm("scancel", job)
    assert "stopped by SIGTERM in epoch" in over_two.log() and f" 0/{EPOCHS} " not in over_two.training_log(seed=0)
    ours, theirs = over_two.metrics(RUN), local.metrics(RUN)
    assert len(ours) == EPOCHS
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
