"""Numbers that training cannot go on from: the run stops before the weights are touched, and says where it happened."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import ROOT, SMALL, metrics
from trainings import config as small

from star import config as configuration
from star.cli import main
from star.errors import Diverged
from star.objectives import flow_grpo, trajectory
from star.prompts import make
from star.prompts.record import Prompt
from star.training import learner as learning
from star.training import rollout as rolling
from star.training import train as trainer
from star.training.processes import Processes


def _settings(base: Path, *more: str) -> tuple[configuration.RunSettings, list[Prompt]]:
    config = small(base, *more)
    return configuration.run_settings(config, "preference", "star"), make.records(config, "preference", "train")


def _epochs(out: Path) -> list[int]:
    return [row["epoch"] for row in metrics(out)]


def _from_second_epoch(function: object, broken: object) -> object:
    """`function` in the first epoch (two calls: one a batch), then `broken` of what it returns."""
    calls = []

    def spoilt(*args: object, **kwargs: object) -> object:
        calls.append(1)
        result = function(*args, **kwargs)
        return broken(result) if len(calls) > 2 else result

    return spoilt


def test_a_reward_that_is_not_finite(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, records = _settings(random_base)
    in_order = Processes.in_order
    calls = []

    def spoilt(self: object, value: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        value = in_order(self, value, rows)
        if value.dtype == torch.float64:
            calls.append(1)
            if len(calls) == 2:
                value[5] = torch.nan
        return value

    monkeypatch.setattr(Processes, "in_order", spoilt)
    with pytest.raises(Diverged, match=r"reward is nan \(epoch 2, prompt '.+'\); weights are untouched"):
        trainer.train(settings, 0, records, tmp_path)
    assert _epochs(tmp_path) == [1] and (tmp_path / "checkpoints/epoch0001/state/progress.json").exists()
    monkeypatch.undo()
    trainer.train(settings, 0, records, tmp_path)  # the last good state stands
    assert _epochs(tmp_path) == [1, 2, 3]


def test_latents_that_are_not_finite(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, records = _settings(random_base)

    def broken(trajectory: object) -> object:
        trajectory.latents_BSCHW[2, 2:, 0, 3, 4] = torch.inf
        return trajectory

    monkeypatch.setattr(rolling, "denoise", _from_second_epoch(rolling.denoise, broken))
    with pytest.raises(Diverged, match=r"latents are not finite after denoising step 1 \(epoch 2, prompt '.+'\)"):
        trainer.train(settings, 0, records, tmp_path)
    assert _epochs(tmp_path) == [1]


@pytest.mark.parametrize(
    ("module", "function", "named"),
    [(flow_grpo, "clipped_loss", "policy loss"), (trajectory, "reference_kl", "KL to the base")],
)
def test_a_loss_that_is_not_finite(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, function: str, named: str
) -> None:
    settings, records = _settings(random_base)
    true = getattr(module, function)

    def broken(*args: object) -> object:
        result = true(*args)
        (result if torch.is_tensor(result) else result[0]).data[1] = torch.nan
        return result

    monkeypatch.setattr(module, function, broken)
    with pytest.raises(Diverged, match=rf"{named} is nan \(epoch 1, denoising step 0, prompt '.+'\); weights are untouched"):
        trainer.train(settings, 0, records, tmp_path)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(random_base: Path) -> None:
    settings, _ = _settings(random_base)
    learner = learning.Learner(trainer.make_policy(settings, 0), settings.optimizer, settings.training)
    for p in learner.parameters:
        p.grad = torch.zeros_like(p)
    learner.parameters[3].grad[0, 0] = torch.nan
    name = next(n for n, p in learner.policy.model.transformer.named_parameters() if p is learner.parameters[3])
    before = [p.detach().clone() for p in learner.parameters]
    with pytest.raises(Diverged, match=rf"gradient of {name} is not finite \(epoch 7\); weights are untouched"):
        learner.step(7)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True)) and learner.ema.steps == 0


def test_the_command_says_it_in_one_line(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    sets = [x for s in (*SMALL, f"policy.model={random_base}", "training.max_kl=1e-12") for x in ("--set", s)]
    command = ["train", "--task", "preference", "--method", "star", "--out", str(tmp_path), *sets]
    assert main(command) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("star train: KL to the base is ") and "above training.max_kl = 1e-12 (epoch 2)" in printed
    kept = [f.name for f in (tmp_path / "checkpoints").iterdir() if f.is_dir()]
    assert _epochs(tmp_path) == [1, 2] and kept == ["epoch0001"]


def test_in_float16_a_loss_scale_that_is_too_high_is_halved_and_the_step_left_out(random_base: Path) -> None:
    settings, _ = _settings(random_base, "policy.precision=float16")
    learner = learning.Learner(trainer.make_policy(settings, 0), settings.optimizer, settings.training)
    before = [p.detach().clone() for p in learner.parameters]
    assert learner.scaler.get_scale() == 2**16
    for p in learner.parameters:
        p.grad = torch.full_like(p, torch.inf)
    learner.backward(sum((p * 0).sum() for p in learner.parameters))
    assert learner.step(1) == (0.0, 0.0) and learner.scaler.get_scale() == 2**15 and learner.ema.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    learner.backward(sum((p * 1e-3).sum() for p in learner.parameters))  # the same step as without a scale
    learner.settings = settings.optimizer.model_copy(update={"max_grad_norm": 1e9})
    norm, change = learner.step(1)
    count = sum(p.numel() for p in learner.parameters)
    assert norm == pytest.approx(1e-3 * count**0.5, rel=1e-4) and learner.ema.steps == 1
    for p, b in zip(learner.parameters, before, strict=True):  # AdamW's first step: -lr * sign, and weight decay
        torch.testing.assert_close(p, b * (1 - 3e-7) - settings.optimizer.learning_rate, rtol=1e-3, atol=1e-5)
    assert change == pytest.approx(settings.optimizer.learning_rate * count**0.5, rel=1e-2)


def test_float16_trains_with_a_ratio_of_one_and_keeps_its_scale_in_the_state(random_base: Path, tmp_path: Path) -> None:
    settings, records = _settings(random_base, "policy.precision=float16", "training.epochs=2")
    trainer.train(settings, 0, records, tmp_path)
    rows = metrics(tmp_path)
    assert all(row["ratio_max_deviation"] == 0.0 and row["grad_norm"] > 0 for row in rows)
    kept = json.loads((tmp_path / "checkpoints/epoch0002/state/progress.json").read_text())["scaler"]
    assert kept["scale"] == 2**16 and kept["_growth_tracker"] == 2
