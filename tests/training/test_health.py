"""What warns of a training that goes wrong, against simulated collapses and healthy runs, and against a stopped training."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import ROOT, SMALL, config, metrics, session, train

from star.cli import main
from star.config import run_settings
from star.errors import Stalled
from star.layout import Run
from star.prompts import make
from star.scoring.pool import RewardPool
from star.training import health
from star.training import train as trainer
from star.training.epoch import prepare_epoch, run_epoch
from star.training.learner import Learner
from star.training.metrics import Meter
from star.training.rollout import sample_rollouts
from star.training.update import accumulate, velocities_at

SIDE, PROMPTS, TIMES = 64, 8, 16


def _pictures(seed: int, collapse: float, change: float) -> list[list[np.ndarray]]:
    """Two pictures of each prompt: discs of a colour and place of their own, which `collapse` (0..1) makes one grey picture.

    `change` (0..1) is what a healthy policy learns: sharper colours and larger, more alike objects.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    groups = []
    for _ in range(PROMPTS):
        color, group = rng.uniform(0.3, 1, 3), []
        for _ in range(2):
            middle, radius = (
                rng.uniform(20, 44, 2) * (1 - 0.2 * change) + 32 * 0.2 * change,
                rng.uniform(8, 14) * (1 + 0.2 * change),
            )
            disc = np.hypot(y - middle[0], x - middle[1])[..., None] < radius
            picture = np.where(disc, color, rng.uniform(0, 0.25, 3)) + rng.normal(0, 0.06, (SIDE, SIDE, 3))
            group.append((255 * ((1 - collapse) * picture + collapse * 0.5).clip(0, 1)).astype(np.uint8))
        groups.append(group)
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_the_warning_comes_before_the_guards_have_halved_and_never_in_a_healthy_run(seed: int) -> None:
    first = health.measure(_pictures(seed, 0.0, 0.0))
    healthy = [health.measure(_pictures(seed, 0.0, t / TIMES)) for t in range(TIMES + 1)]
    assert not any(health.fallen(first, now) for now in healthy)
    collapsing = [health.measure(_pictures(seed, min(1.0, t / TIMES), 0.0)) for t in range(TIMES + 1)]
    warned = next(t for t, now in enumerate(collapsing) if health.fallen(first, now))
    halved = next(t for t, now in enumerate(collapsing) if any(now[guard] < first[guard] / 2 for guard in health.FALLEN))
    assert 0 < warned < halved


RECORDED = Path(__file__).parent / "recorded"  # measured on the fixed pictures of real trainings of the miniature


def test_in_a_recorded_collapse_the_warning_comes_before_a_guard_has_halved() -> None:
    """config/miniature.yaml, preference, flow_grpo, seed 0, without KL at eight times the rate; pictures every two epochs."""
    first, *later = (json.loads(line) for line in (RECORDED / "collapse.jsonl").read_text().splitlines())
    warned = next(row["epoch"] for row in later if health.fallen(first, row))
    halved = next(row["epoch"] for row in later if any(row[guard] < first[guard] / 2 for guard in health.FALLEN))
    assert (warned, halved) == (2, 6)


@pytest.mark.parametrize(
    "run", sorted(set(RECORDED.glob("*.jsonl")) - {RECORDED / "collapse.jsonl"}), ids=lambda file: file.stem
)
def test_there_is_no_warning_in_a_recorded_healthy_run(run: Path) -> None:
    """The same configuration at its own settings, ten epochs of 32 images, by task and seed."""
    first, *later = (json.loads(line) for line in run.read_text().splitlines())
    assert later[-1]["epoch"] == 10 and not any(health.fallen(first, row) for row in later)


def test_no_recorded_training_would_have_been_warned_of() -> None:
    """Of edges and colours; diversity by pixels was not recorded."""
    files = sorted((ROOT / "docs/lab-notes/2026-11-half-strength/evidence/data").glob("*.json.gz"))
    recorded = [json.loads(gzip.decompress(file.read_bytes())) for file in files]
    guards = {
        (r["task"], r["method"], r["seed"]): zip(r["guards"]["guard"], r["guards"]["value"], strict=True) for r in recorded
    }
    first = {(task, seed): dict(of_base) for (task, method, seed), of_base in guards.items() if method == "base"}
    lowest = [
        value / first[task, seed][guard]
        for (task, method, seed), of_run in guards.items()
        if method != "base"
        for guard, value in of_run
        if guard in ("edge_density", "color_entropy")
    ]
    assert len(lowest) == 180 * 2 * 2 and health.FALLEN["edge_density"] == health.FALLEN["color_entropy"] < min(lowest) - 0.05


def test_epochs_in_a_row_are_counted_from_the_end() -> None:
    shares = [1.0, 1.0, 0.5, 1.0, 1.0]
    rows = [{"zero_advantage_share": share} for share in shares]
    assert [health.without_advantage(rows[:n]) for n in range(6)] == [0, 1, 2, 0, 1, 2]
    rewards = [{"reward": reward} for reward in (0.1, 0.3, 0.3, 0.2)]
    assert [health.without_better(rewards[:n]) for n in range(5)] == [0, 0, 0, 1, 2]


def test_a_training_without_advantage_warns_stops_and_can_go_on(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("star.training.rollout.np.column_stack", _equal_rewards)
    more = ("training.epochs=6", "training.stop_without_advantage=4", "checkpoints.every=6")
    with pytest.raises(Stalled, match=r"no image had an advantage for 4 epochs.+=4 stops here, null goes on \(epoch 4\)"):
        train(random_base, tmp_path, "flow_grpo", *more)
    assert capsys.readouterr().err.count("warning: no image had an advantage for 2 epochs") == 1
    assert len(metrics(tmp_path)) == 4 and (tmp_path / "checkpoints/epoch0004/state/progress.json").exists()
    with pytest.raises(Stalled, match="for 5 epochs"):  # asked again without another setting, it goes one epoch on
        train(random_base, tmp_path, "flow_grpo", *more)
    rows = train(random_base, tmp_path, "flow_grpo", *more, "training.stop_without_advantage=null")
    assert len(rows) == 6 and all(row["gradient_signal"] is None for row in rows)


def _equal_rewards(columns: list[np.ndarray]) -> np.ndarray:
    return np.full((len(columns[0]), len(columns)), 0.25)


def test_the_best_checkpoint_is_marked_and_stopping_by_it_is_a_setting(
    random_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = config(
        random_base, "training.epochs=30", "tracking.prompts=2", "evaluation.steps=2", "training.stop_without_better=2"
    )
    settings, records = run_settings(chosen, "preference", "flow_grpo"), make.records(chosen, "preference", "train")
    watched = trainer.Watched(make.fixed(chosen, "preference", 2))
    with pytest.raises(Stalled, match=r"has not risen 2 times in a row.+best\.json.+stop_without_better=2"):
        trainer.train(settings, 0, records, tmp_path, watched=watched)
    measured = [json.loads(file.read_text()) for file in sorted((tmp_path / "pictures").glob("*.json"))]
    rewards = [row["reward"] for row in measured]
    assert len(rewards) < 30 and max(rewards[:-2]) >= max(rewards[-2:]) and rewards[-3] == max(rewards)
    tested = max(measured[1:], key=lambda row: row["reward"])  # the untrained model is no checkpoint
    best = json.loads(Run(tmp_path).best.read_text())
    assert best == {"epoch": tested["epoch"], "reward": tested["reward"], "pictures": 4}
    assert (tmp_path / "checkpoints" / f"epoch{len(rewards) - 1:04d}").exists()


def test_the_command_says_why_it_stops(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("star.training.rollout.np.column_stack", _equal_rewards)
    sets = [
        *SMALL,
        f"policy.model={random_base}",
        "training.stop_without_advantage=1",
        "tracking.prompts=0",
        f"results={tmp_path}",
    ]
    command = ["train", "--task", "preference", "--method", "flow_grpo", "--out", str(tmp_path / "run")]
    assert main([*command, *(word for setting in sets for word in ("--set", setting))]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("star train: no image had an advantage for 1 epochs")


def test_numbers_by_denoising_step_and_the_signal_of_gradients(random_base: Path, tmp_path: Path) -> None:
    rows = train(random_base, tmp_path, "flow_grpo", "training.updates_per_epoch=2", "optimizer.learning_rate=0.01")
    for row in rows:
        steps = [row[f"ratio_deviation_step{t}"] for t in range(2)]
        assert 0 < np.mean(steps) < row["ratio_max_deviation"]
        assert np.mean([row[f"clip_fraction_step{t}"] for t in range(2)]) == pytest.approx(row["clip_fraction"])
        for t, deviation in enumerate(steps):  # log r = r - 1 in the first order
            assert row[f"log_prob_change_step{t}"] == pytest.approx(deviation, rel=0.05)
        assert -1 <= row["gradient_signal"] <= 1


def test_gradients_by_denoising_step_are_those_of_each_steps_own_loss(
    random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    chosen = config(random_base, "policy.precision=float32")
    settings, prompts = run_settings(chosen, "preference", "flow_grpo"), make.records(chosen, "preference", "train")
    with RewardPool(settings.reward, settings.scorers, 0) as pool:
        own = session(settings, prompts, pool)
        run_epoch(own, 1, first=True)  # the momentum that gradients are compared with
        epoch = prepare_epoch(own, 2)
        rollouts = sample_rollouts(own, epoch)
    advantage_B, rows = own.objective.advantages(rollouts.reward_B, rollouts.prompt_B), np.arange(4)
    meter, seen = accumulate(own, epoch, rollouts, batches=[(rows, 3)], advantage_B=advantage_B, map_RTHW=None), Meter(2)
    seen.extend(meter)
    row, parameters = seen.row(own.processes), own.learner.parameters
    momenta = torch.cat([own.learner.optimizer.state[p]["exp_avg"].flatten() for p in parameters])
    for point in own.objective.points(epoch, rollouts, rows):
        text = epoch.text[torch.from_numpy(rollouts.prompt_B[rows])]
        velocities = velocities_at(own.learner, point, text, asks=own.objective.asks, recorder=None)
        advantage_M = torch.from_numpy(advantage_B[rows]).float()
        terms = own.objective.terms(point, velocities=velocities, advantage_M=advantage_M, map_MHW=None)
        loss = sum(weight * part_M[:3].mean() for weight, part_M in terms.parts.values())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        assert row[f"grad_norm_step{point.step}"] == pytest.approx(gradient.norm().item(), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(gradient, momenta, dim=0).item()
        assert row[f"gradient_signal_step{point.step}"] == pytest.approx(cosine, abs=1e-4)
    assert {name for name in row if name.startswith("grad_norm_step")} == {"grad_norm_step0", "grad_norm_step1"}


def test_the_signal_is_the_cosine_with_the_momentum(random_base: Path) -> None:
    settings = run_settings(config(random_base), "preference", "flow_grpo")
    learner = Learner(trainer.make_policy(settings, 0), settings.optimizer, settings.training)
    assert learner.signal() is None
    for sign in (1.0, 0.5):  # the momentum points where all gradients so far did
        for i, p in enumerate(learner.parameters):
            p.grad = torch.full_like(p, sign * (i + 1) * 1e-3)
        if sign == 1.0:
            learner.step(1)
    assert learner.signal().item() == pytest.approx(1.0, abs=1e-5)
    for p in learner.parameters:
        p.grad.neg_()
    assert learner.signal().item() == pytest.approx(-1.0, abs=1e-5)
    learner.parameters[0].grad.fill_(torch.inf)
    assert learner.signal().item() == 0.0


def test_of_two_rewards_the_quiet_one_is_heard(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = "def brightness(images, prompts):\n    return [1000.0 * float(image.mean()) for image in images]\n"
    (tmp_path / "loud_reward.py").write_text(loud)
    monkeypatch.syspath_prepend(tmp_path)
    both = "tasks.preference.reward={pickscore: 1.0, 'loud_reward:brightness': 1.0}"
    followed = {}
    for how in ("sum", "standardised", "advantages"):
        more = ("training.epochs=1", f"training.reward_combination={how}")
        (row,) = train(random_base, tmp_path / how, "flow_grpo", both, *more)
        assert row["reward_std_loud_reward:brightness"] > 1000 * row["reward_std_pickscore"] > 0
        followed[how] = [row[f"advantage_correlation_{scorer}"] for scorer in ("pickscore", "loud_reward:brightness")]
    assert followed["sum"][1] == pytest.approx(1.0, abs=1e-4)  # the loud one alone
    for how in ("standardised", "advantages"):
        assert followed[how][0] > followed["sum"][0] + 0.1 and followed[how][1] < 1 - 1e-3
