"""The workflow with a stand-in for the `star` command: what runs, what runs again, what a bad configuration does."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from toy import Toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy whose whole run is done."""
    toy = Toy(tmp_path_factory.mktemp("finished"))
    done = toy.snakemake()
    assert done.returncode == 0, done.stdout
    return toy


@pytest.fixture
def toy(finished: Toy, tmp_path: Path) -> Toy:
    """A copy of the finished toy, to be changed."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    copy = object.__new__(Toy)
    copy.folder = tmp_path
    return copy


def test_a_run_calls_every_stage_as_often_as_it_must(finished: Toy):
    assert Counter(call.split()[0] for call in finished.calls()) == {
        "prompts": 4,  # 2 tasks x 2 splits
        "train": 4,  # 2 tasks x 2 methods
        "sample": 6,  # 2 tasks x (base + 2 methods), each with both of its checkpoints
        "score": 6,
        "maps": 2,  # star only
        "log": 7,  # 2 tasks x (base + 2 methods), and the tables
        "tables": 1,
        "report": 1,
    }
    untrained = [call for call in finished.calls() if call.startswith("sample") and "/base/" in call]
    assert len(untrained) == 2 and not any("--adapter" in call for call in untrained)
    run = "results/toy/letters/star/seed0"
    (trained,) = [call for call in finished.calls() if call.startswith("sample") and run in call]
    assert f"--out {run}/samples/epoch0002 {run}/samples/epoch0004 --adapter" in trained
    assert f"--adapter {run}/checkpoints/epoch0002/adapter {run}/checkpoints/epoch0004/adapter" in trained
    (scored,) = [call for call in finished.calls() if call.startswith("score") and run in call]
    assert f"--images {run}/samples/epoch0002 {run}/samples/epoch0004 --out {run}/scores/epoch0002.jsonl" in scored
    assert scored.endswith(f"--guards {run}/guards/epoch0002.json {run}/guards/epoch0004.json")
    resolved = yaml.safe_load((finished.folder / "results/toy/config.yaml").read_text())
    assert resolved["training"]["epochs"] == 4 and resolved["optimizer"]["weight_decay"] == 1e-4


def test_a_finished_run_plans_nothing_whichever_key_changes_no_result(finished: Toy):
    jobs, printed = finished.planned("--config", "scorers={workers: 2}")
    assert jobs == {} and "Nothing to be done" in printed


def test_a_changed_method_reruns_what_depends_on_it_alone(finished: Toy):
    jobs, printed = finished.planned("--config", "methods={star: {optimizer: {learning_rate: 0.5}}}")
    assert jobs == {"train": 2, "sample": 2, "score": 2, "maps": 2, "log": 2, "tables": 1, "report_page": 1, "log_tables": 1}
    assert not re.search(r"(Training|with|Scoring|Logging) flow_grpo", printed)


def test_every_reported_scorer_scores_every_tested_epoch(toy: Toy):
    report = "tasks={letters: {report: [ocr, pickscore, 'own:reward']}}"
    (toy.folder / "own.py").write_text("def reward(pictures, prompts):\n    return [0.0] * len(pictures)\n")
    jobs, printed = toy.planned("--config", report)
    assert jobs == {
        "score_by_pickscore": 3,
        "score_by_own_reward": 3,
        "log": 3,
        "tables": 1,
        "report_page": 1,
        "log_tables": 1,
    }, printed
    done = toy.snakemake("--config", report, "--until", "log")
    assert done.returncode == 0, done.stdout
    scores = toy.folder / "results/toy/letters/star/seed0/scores"
    assert {path.name for path in scores.glob("epoch0004*")} == {
        "epoch0004.jsonl",
        "epoch0004.pickscore.jsonl",
        "epoch0004.own.reward.jsonl",
    }
    calls = [call for call in toy.calls() if "--scorer own:reward" in call]
    assert len(calls) == 3 and not any("--guards" in call for call in calls)


def test_the_command_line_wins_over_what_a_task_changes(toy: Toy):
    file = toy.folder / "toy.yaml"
    config = yaml.safe_load(file.read_text())
    config["tasks"]["shapes"]["overrides"] = {"training": {"epochs": 8}}
    file.write_text(yaml.safe_dump(config))
    assert "shapes/star/seed0/scores/epoch0008.jsonl" in toy.planned()[1]
    jobs, printed = toy.planned("--config", "training={epochs: 6}")
    assert set(re.findall(r"shapes/star/seed0/scores/(epoch\d+)", printed)) >= {"epoch0006"} and "epoch0008" not in printed
    assert jobs["train"] == 4
    done = toy.snakemake("--config", "training={epochs: 6}", "--until", "train")
    assert done.returncode == 0, done.stdout
    adapters = (toy.folder / "results/toy/shapes/star/seed0/checkpoints").iterdir()
    assert {f.name for f in adapters} == {"epoch0002", "epoch0004", "epoch0006"}


def test_a_file_that_extends_another_is_followed(toy: Toy):
    (toy.folder / "top.yaml").write_text("extends: toy.yaml\ntasks: {letters: null}\nmethods: {flow_grpo: null}\n")
    jobs, _ = toy.planned("--configfile", "top.yaml", "--forceall")
    assert (jobs["train"], jobs["sample"]) == (1, 2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("seeds=[0, 0]", "command line: seeds: 0 stands twice"),
        ("results=a folder", "command line: results: 'a folder' has a letter"),
        ("training={kl_beta: 1}", "command line: training.kl_beta: is now objective.kl_weight"),
        ("optimizer={learning_rate: 1e999}", "command line: optimizer.learning_rate: Input should be a finite number"),
    ],
)
def test_what_cannot_be_is_refused_before_work(finished: Toy, said: str, words: str):
    done = finished.snakemake("-n", "--config", said)
    assert done.returncode == 1 and words in done.stdout and "Traceback" not in done.stdout


def test_credit_is_measured_when_it_is_asked_for(finished: Toy):
    assert finished.planned("credit")[0] == {"credit": 1, "credit_task": 2, "log_credit": 2}


def test_a_second_seed_makes_evidence(toy: Toy):
    jobs, _ = toy.planned("--config", "seeds=[0, 1]")
    assert jobs == {
        "train": 4,
        "sample": 6,
        "score": 6,
        "log": 6,
        "tables": 1,
        "report_page": 1,
        "log_tables": 1,
        "evidence": 1,
    }
    done = toy.snakemake("--config", "seeds=[0, 1]", "--until", "evidence")
    assert done.returncode == 0, done.stdout
    assert (toy.folder / "results/toy/evidence/tables.md").exists()
    assert any(call.startswith("evidence --config") and "--collect --data" in call for call in toy.calls())


def test_prompts_of_global_attributes_are_scored_for_the_evidence(toy: Toy):
    tasks, methods = "tasks={preference: {prompts: preference, reward: {pickscore: 1.0}}}", "seeds=[0, 1]"
    jobs, _ = toy.planned("--config", tasks, methods)
    # base, flow_grpo and star under two seeds; the maps are star's
    assert (jobs["sample_attributes"], jobs["score_attributes"], jobs["map_statistics"]) == (6, 6, 2)


def test_changed_evaluation_trains_nothing(finished: Toy):
    jobs, _ = finished.planned("--config", "evaluation={steps: 3}")
    assert jobs == {"sample": 6, "score": 6, "log": 6, "tables": 1, "report_page": 1, "log_tables": 1}


def test_pictures_that_were_redone_are_scored_again(toy: Toy):
    # Their prompt list has the same content as before: going by checksums would keep the old scores.
    (toy.folder / "results/toy/letters/star/seed0/samples/epoch0004/prompts.jsonl").touch()
    jobs, _ = toy.planned()
    assert jobs == {"score": 1, "log": 1, "tables": 1, "report_page": 1, "log_tables": 1}


def test_a_failed_training_keeps_what_it_resumes_from_and_leaves_nothing_stale(toy: Toy):
    run, changed = toy.folder / "results/toy/letters/star/seed0", ("--config", "methods={star: {objective: {kl_weight: 0.5}}}")
    shutil.rmtree(run / "checkpoints")
    (toy.folder / "stop").touch()
    failed = toy.snakemake(*changed)
    assert failed.returncode == 1 and "stopped after the first checkpoint" in failed.stdout, failed.stdout
    assert (run / "checkpoints/epoch0002/state/progress.json").exists() and not (run / "trained.sha256").exists()
    # Snakemake took the checksums away; it must not be content with the old scores and tables.
    jobs, _ = toy.planned(*changed)
    assert jobs == {"train": 2, "sample": 2, "score": 2, "maps": 2, "log": 2, "tables": 1, "report_page": 1, "log_tables": 1}


def test_jobs_wait_for_what_is_fetched_and_run_offline(tmp_path: Path):
    toy, scores = Toy(tmp_path), "results/toy/letters/base/seed0/scores/epoch0000.jsonl"
    hub = ("--config", f"policy={{model: acme/base, revision: {'a' * 40}}}", "--", scores)
    done = toy.snakemake(*hub)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "offline.txt").read_text().split("\n") == ["fetch None", "prompts 1", "sample 1", "score 1", ""]
    (fetched,) = (tmp_path / "results/toy").glob("fetched-*.txt")
    fetched.touch()
    assert toy.planned(*hub)[0] == {}  # fetched again, it is the same
    jobs, _ = toy.planned("--config", f"policy={{model: acme/base, revision: {'b' * 40}}}", "--", scores)
    assert jobs == {"fetch": 1, "prompts": 1, "sample": 1, "score": 1}


def test_jobs_that_use_a_gpu_choose_among_those_of_the_machine(toy: Toy):
    for processes, training in ((1, "1 "), (2, "2 ")):
        _, printed = toy.planned("-p", "--config", "policy={device: auto}", f"compute={{processes: {processes}}}")
        chosen = re.findall(r"scripts/on_gpus\.py (\d+ ).*? (train|sample|score|maps) +--", printed)
        assert set(chosen) == {(training, "train"), ("1 ", "sample"), ("1 ", "score"), ("1 ", "maps")}
    assert "on_gpus.py" not in toy.planned("-p", "--config", "compute={processes: 2}")[1]


def test_rules_that_score_have_what_their_engine_needs_in_their_environment(toy: Toy):
    conda = toy.folder / "bin/conda"  # answers what a dry run asks
    conda.parent.mkdir()
    info = {"conda_version": "24.11.0", "conda_prefix": "/", "platform": "linux-64", "get": {}}
    conda.write_text(f"#!/bin/sh\necho '{json.dumps(info)}'\n")
    conda.chmod(0o755)
    for engine, environments in (("rapidocr", {"star"}), ("easyocr", {"star", "easyocr"})):
        done = toy.snakemake(
            "-n", "--forceall", "--sdm", "conda", "--config", f"scorers={{ocr: {{engine: {engine}}}}}", path=conda.parent
        )
        assert done.returncode == 0, done.stdout
        assert set(re.findall(r"Conda environment \S*?(\w+)\.yaml will be created", done.stdout)) == environments


def test_a_wrong_key_stops_everything_and_is_named(toy: Toy):
    before = toy.calls()
    done = toy.snakemake("--config", "training={epohcs: 3}")
    assert done.returncode == 1
    assert "command line: training.epohcs: no such key" in done.stdout
    assert "Traceback" not in done.stdout and toy.calls() == before


def test_the_report_is_one_page_with_captions(finished: Toy):
    done = finished.snakemake("--report", "report.html")
    assert done.returncode == 0, done.stdout
    page = (finished.folder / "report.html").read_text()
    for words in ("Allocation maps", "learning_curves.svg", "main.csv", "An interval of a difference that excludes zero"):
        assert words in page


def test_every_rule_says_what_it_needs():
    rules = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^ *rule(?: |(?=:))", file.read_text(), flags=re.MULTILINE)[1:]:
            named = re.match(r":\n +name:\n +f\"(\w+)_", block)
            rules[named[1] if named else block.split(":")[0]] = block
    assert {"fetch", "prompts", "train", "sample", "score", "log", "maps", "tables", "pretrain_miniature"} <= set(rules)
    for name, block in rules.items():
        for key in ("log:", "benchmark:", "threads:", "mem_mb=", "runtime=", "conda:", "message:"):
            assert key in block, f"rule {name} has no {key}"
        environment = re.search(r"conda:\n +(\S+)\n", block)[1]
        known = ('"../../envs/mmdet.yaml"',) if name == "kit_verdicts" else ("SCORING", '"../../envs/star.yaml"')
        assert environment in known, f"rule {name}: conda: {environment}"
