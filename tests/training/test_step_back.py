"""A training that diverges, goes back and on at a lower rate: the same numbers as one that was told to by hand."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_processes import LAUNCH
from trainings import ROOT, config, metrics, numbers, session, train

from star import config as configuration
from star.errors import Diverged
from star.files import read_jsonl
from star.layout import Run
from star.prompts import make
from star.scoring.pool import RewardPool
from star.training import checkpoint
from star.training import train as trainer
from star.training.epoch import run_epoch

FAST = ("training.epochs=6", "optimizer.learning_rate=0.01", "training.max_kl=6e-4")  # above it in epoch 5
BACK = (*FAST, "training.step_backs=1", "training.step_back_factor=0.1")


def _weights(out: Path, epoch: int = 6) -> dict[str, torch.Tensor]:
    return load_file(out / f"checkpoints/epoch{epoch:04d}/state/weights.safetensors")


@pytest.fixture(scope="module")
def stepped(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stepped")
    train(random_base, out, "flow_grpo", *BACK)
    return out


def test_it_goes_on_from_before_the_last_whole_epoch_as_if_told_by_hand(
    random_base: Path, stepped: Path, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=r"KL to the base .+ \(epoch 5\)"):  # without the setting it stops
        train(random_base, tmp_path, "flow_grpo", *FAST)
    slow = configuration.run_settings(config(random_base, *FAST, "optimizer.learning_rate=0.001"), "preference", "flow_grpo")
    prompts = make.records(config(random_base), "preference", "train")
    with RewardPool(slow.reward, slow.scorers, 0) as pool:
        by_hand = session(slow, prompts, pool)
        assert checkpoint.resume(Run(tmp_path).checkpoint(3), by_hand.learner) == 3
        rows = [run_epoch(by_hand, epoch, first=epoch == 4) for epoch in (4, 5, 6)]
    ours = metrics(stepped)
    assert [row["epoch"] for row in ours] == [1, 2, 3, 4, 5, 6]
    assert numbers(ours[:3]) == numbers(metrics(tmp_path)[:3])
    noted = {"step_backs": 1, "learning_rate": 0.01 * 0.1}
    of_maps = {name for row in ours for name in row if name.startswith(("map_", "object_", "gradient_inside"))}
    assert numbers(ours[3:]) == numbers([json.loads(json.dumps(row)) | noted for row in rows]) and not of_maps
    assert all(torch.equal(a, b) for a, b in zip(by_hand.learner.parameters, _ordered(by_hand, stepped), strict=True))
    (step,) = read_jsonl(Run(stepped).step_backs)
    assert (step["epoch"], step["to"], step["factor"]) == (5, 3, 0.1) and "above training.max_kl" in step["why"]


def _ordered(by_hand: trainer.Session, out: Path) -> list[torch.Tensor]:
    kept = {name.replace(".weight", ""): tensor for name, tensor in _weights(out).items()}
    names = [name for name, p in by_hand.learner.policy.model.transformer.named_parameters() if p.requires_grad]
    return [kept[name.replace(".default.weight", "")] for name in names]


def test_one_that_has_stopped_can_be_told_to(random_base: Path, stepped: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train(random_base, tmp_path, "flow_grpo", *FAST)
    train(random_base, tmp_path, "flow_grpo", *BACK)
    _require_same(tmp_path, stepped)


@pytest.mark.parametrize("where", ["in the step back", "after it"])
def test_a_killed_one_goes_on_exactly(
    random_base: Path, stepped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    function = (checkpoint, "_remove") if where == "in the step back" else (trainer, "_stop_if_stalled")
    true = getattr(*function)

    def killed(*arguments: object) -> None:
        if Run(tmp_path).step_backs.exists():
            raise KeyboardInterrupt
        true(*arguments)

    monkeypatch.setattr(*function, killed)
    with pytest.raises(KeyboardInterrupt):
        train(random_base, tmp_path, "flow_grpo", *BACK)
    monkeypatch.undo()
    train(random_base, tmp_path, "flow_grpo", *BACK)
    _require_same(tmp_path, stepped)


def _require_same(out: Path, other: Path) -> None:
    assert numbers(metrics(out)) == numbers(metrics(other))
    assert (out / "checkpoints/step_backs.jsonl").read_text() == (other / "checkpoints/step_backs.jsonl").read_text()
    mine, theirs = _weights(out), _weights(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_it_stops_after_as_many_as_are_allowed(random_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = ("optimizer.learning_rate=0.01", "training.max_kl=1e-12", "training.step_backs=2")
    with pytest.raises(Diverged, match=r"\(epoch 2\)"):
        train(random_base, tmp_path, "flow_grpo", *more)
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "going on from epoch 0 at the learning rate 0.005, step back 1 of 2 (training.step_backs)" in printed[0]
    assert "going on from epoch 0 at the learning rate 0.0025, step back 2 of 2" in printed[1] and len(printed) == 2
    rows = metrics(tmp_path)
    assert [(row["epoch"], row["learning_rate"]) for row in rows] == [(1, 0.0025), (2, 0.0025)]


def test_processes_that_share_the_base_go_back_together(random_base: Path, tmp_path: Path) -> None:
    two = ("training.epochs=2", "compute={processes: 2, shard: true}", "policy.precision=float32", "tracking.prompts=0")
    back = ("optimizer.learning_rate=0.01", "training.max_kl=1e-6", "training.step_backs=1", "training.step_back_factor=1e-6")
    chosen = config(random_base, *two, *back)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    command = [*LAUNCH, "--num_processes", "2", "-m", "star.cli", "train", "--config", str(tmp_path / "config.yaml")]
    command += ["--task", "preference", "--method", "flow_grpo", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    (step,) = read_jsonl(Run(tmp_path / "run").step_backs)
    assert (step["epoch"], step["to"]) == (2, 0)
    assert [(row["epoch"], row["step_backs"]) for row in metrics(tmp_path / "run")] == [(1, 1), (2, 1)]


def test_a_loss_scale_that_was_left_in_a_step_starts_again(random_base: Path) -> None:
    settings = configuration.run_settings(config(random_base, "policy.precision=float16"), "preference", "flow_grpo")
    learner = trainer.Learner(trainer.make_policy(settings, 0), settings.optimizer, settings.training)
    kept = learner.capture()
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for value in (torch.nan, 1e-3):
        learner.backward(sum((p * value).sum() for p in learner.parameters))
        if value != value:
            with pytest.raises(Diverged):
                learner.step(1)
            learner.restore(kept)
            learner.slow_down(0.5)
    before = [p.detach().clone() for p in learner.parameters]
    learner.step(1)
    for p, b in zip(learner.parameters, before, strict=True):  # AdamW's first step: -rate x sign, and weight decay
        rate = settings.optimizer.learning_rate / 2
        torch.testing.assert_close(p, b * (1 - rate * settings.optimizer.weight_decay) - rate, rtol=1e-3, atol=1e-6)
