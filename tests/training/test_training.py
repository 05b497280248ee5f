"""Training end to end on random weights: ratio, scalar equivalence, determinism, a killed process."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from records import asked
from safetensors.torch import load_file
from torch._dynamo.backends.debugging import aot_eager
from trainings import ROOT, SMALL, TIMINGS, metrics, numbers, session, train
from trainings import config as small

from star import cli
from star import config as configuration
from star.errors import InputError
from star.flow.sampler import denoise
from star.flow.seeding import noise
from star.models.attention import Recorder
from star.prompts import make
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training.epoch import prepare_epoch, trained_steps
from star.training.maps import with_contrast
from star.training.rollout import sample_rollouts
from star.training.update import micro_batches


def _adapter(out: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(out / f"checkpoints/epoch{epoch:04d}/adapter/pytorch_lora_weights.safetensors")


def test_metrics_and_a_ratio_of_exactly_one(scalar_run: Path) -> None:
    rows = metrics(scalar_run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:  # one optimizer step an epoch: every ratio is taken before it
        assert row["ratio_mean"] == 1.0 and row["ratio_max_deviation"] == 0.0 and row["clip_fraction"] == 0.0
        assert row["grad_norm"] > 0 and row["reward_std"] > 0
        assert {"loss", "policy_loss", "kl", "reward_mean", "zero_advantage_share", *TIMINGS} <= set(row)
    assert rows[0]["kl"] == 0.0 < rows[2]["kl"]  # the fresh adapter is the reference


def test_the_uniform_map_is_flow_grpo_bit_for_bit_over_three_epochs(
    random_base: Path, tmp_path: Path, scalar_run: Path
) -> None:
    rows = train(random_base, tmp_path, "uniform", "methods.uniform={allocation: {source: uniform}}")
    for ours, theirs in zip(numbers(rows), numbers(metrics(scalar_run)), strict=True):
        assert {k: ours[k] for k in theirs} == theirs
        assert ours["map_entropy"] == ours["map_effective_area"] == ours["map_localisation"] == pytest.approx(1.0)
        assert 0 < ours["object_area"] < 1 and ours["gradient_inside"] == pytest.approx(ours["object_area"])
    for name, tensor in _adapter(scalar_run, 3).items():
        assert torch.equal(tensor, _adapter(tmp_path, 3)[name]), name


@pytest.mark.parametrize(
    "allocation",
    [
        "{source: attention}",
        "{source: attention, control: random}",
        "{source: attention}, objective: {form: per_location}",
        "{source: oracle, normalisation: per_trajectory, steps: 2, tokens: all, heads: [0, 3], granularity: 2}",
    ],
)
def test_allocation_changes_the_update_and_not_the_first_rollouts(
    random_base: Path, tmp_path: Path, allocation: str, scalar_run: Path
) -> None:
    rows = train(random_base, tmp_path, "it", f"methods.it={{allocation: {allocation}}}", "training.epochs=1")
    scalar = metrics(scalar_run)[0]
    assert rows[0]["reward_mean"] == scalar["reward_mean"]  # paired: same prompts, same noise
    assert rows[0]["grad_norm"] != scalar["grad_norm"]
    assert rows[0]["ratio_min"] == rows[0]["ratio_max"] == 1.0
    assert 0 < rows[0]["map_entropy"] < 1 and rows[0]["map_drift"] >= 0
    assert all(rows[0][f"localisation_block{block}_step{t}"] > 0 for block in (1, 3) for t in range(3))


@pytest.mark.parametrize("wanted", [None, 0.01])
def test_the_norm_of_an_update_is_measured_and_can_be_set(random_base: Path, tmp_path: Path, wanted: float | None) -> None:
    last = ("training.epochs=2", "training.ema_decay=0", "training.ema_every=1")  # the average is then the weights
    rows = train(random_base, tmp_path, "star", *last, f"optimizer.update_norm={'null' if wanted is None else wanted}")
    first, second = (_adapter(tmp_path, epoch) for epoch in (1, 2))
    strength = {name: 2.0 if ".lora_B." in name else 1.0 for name in first}  # alpha / rank, which the files have in B
    changed = sum(float(((second[name] - first[name]) / strength[name]).square().sum()) for name in first) ** 0.5
    assert rows[1]["update_norm"] == pytest.approx(changed, rel=1e-4)
    assert wanted is None or rows[1]["update_norm"] == wanted
    assert json.loads((tmp_path / "environment.json").read_text())["torch"] == torch.__version__


def test_two_runs_give_the_same_numbers(random_base: Path, tmp_path: Path, star_run: Path) -> None:
    assert numbers(train(random_base, tmp_path, "star", "training.epochs=2")) == numbers(metrics(star_run))[:2]
    for name, tensor in _adapter(tmp_path, 2).items():
        assert torch.equal(tensor, _adapter(star_run, 2)[name]), name


def test_two_runs_of_random_maps_give_the_same_numbers(random_base: Path, tmp_path: Path) -> None:
    first, second = (train(random_base, tmp_path / name, "random", "training.epochs=2") for name in ("first", "second"))
    assert numbers(first) == numbers(second)
    for name, tensor in _adapter(tmp_path / "first", 2).items():
        assert torch.equal(tensor, _adapter(tmp_path / "second", 2)[name]), name


def test_rewards_of_several_scorers_are_added_by_weight_and_logged_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the embedded base, whose pictures show something; the first epoch's are the same whatever they are rewarded for."""
    rewards = {"both": "{geneval: 0.8, pickscore: 0.2}", "geneval": "{geneval: 1.0}", "pickscore": "{pickscore: 1.0}"}
    rows = {}
    for name, reward in rewards.items():
        settings = ("training.epochs=1", "rollout.steps=6", "scorers.workers=1", f"tasks.preference.reward={reward}")
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(small(Path("resources/miniature/base"), *settings).model_dump(mode="json")))
        run = ["--task", "preference", "--method", "flow_grpo", "--out", str(tmp_path / name)]
        assert cli.main(["train", "--config", str(file), *run]) == 0, capsys.readouterr().err
        (rows[name],) = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
    both, alone = rows["both"], [rows[name]["reward_mean"] for name in ("geneval", "pickscore")]
    assert [both["reward_geneval"], both["reward_pickscore"]] == alone and min(alone) > 0
    assert both["reward_mean"] == pytest.approx(0.8 * alone[0] + 0.2 * alone[1])
    assert rows["geneval"]["reward_geneval"] == alone[0] and "reward_pickscore" not in rows["geneval"]


def test_prompts_that_cannot_be_scored_stop_before_work(
    random_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file, listed = tmp_path / "config.yaml", tmp_path / "prompts.jsonl"
    file.write_text(yaml.safe_dump(small(random_base, "scorers.workers=1").model_dump(mode="json")))
    records = make.records(configuration.load(file), "letters", "train")[:40]
    records[-1] = asked("a sign")
    listed.write_text("".join(json.dumps(record.as_dict()) + "\n" for record in records))
    run = ["--task", "letters", "--method", "flow_grpo", "--prompts", str(listed), "--out", str(tmp_path / "run")]
    assert cli.main(["train", "--config", str(file), *run]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("star train: prompt 'a sign': no quoted target")
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""


def test_the_command_line_says_how_many_epochs_whatever_the_task_changes(random_base: Path, tmp_path: Path) -> None:
    """config/miniature.yaml changes `training.epochs` for shapes."""
    small = [option for change in (*SMALL, f"policy.model={random_base}") for option in ("--set", change)]
    run = ["--config", "config/miniature.yaml", "--task", "shapes", "--method", "flow_grpo", "--out", str(tmp_path)]
    assert cli.main(["train", *run, *small, "--set", "training.epochs=3"]) == 0
    assert len(metrics(tmp_path)) == 3


def test_cps_trains_with_a_ratio_of_one_and_refuses_the_last_step(random_base: Path, tmp_path: Path) -> None:
    cps = ("rollout.sampler=cps", "training.epochs=2")
    rows = train(random_base, tmp_path / "run", "star", *cps)
    assert all(row["ratio_max_deviation"] == 0.0 and row["grad_norm"] > 0 for row in rows)
    with pytest.raises(InputError, match=r"rollout\.sampler: cps adds no noise in the last step"):
        train(random_base, tmp_path / "none", "star", *cps, "rollout.window=1", "rollout.window_range=[0, 3]")


def test_compiled_blocks_give_the_numbers_of_the_others(
    random_base: Path, tmp_path: Path, scalar_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        traced.append(graph)
        return aot_eager(graph, inputs)  # forward and backward traced as Inductor gets them, without its compilation

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    rows = train(random_base, tmp_path / "compiled", "flow_grpo", "compute.compile=true")
    assert traced
    scalar = metrics(scalar_run)
    assert all(row["ratio_max_deviation"] == 0 for row in rows)
    for key in ("reward_mean", "policy_loss", "kl", "grad_norm"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in scalar], rel=1e-4, abs=1e-9), key


def _settings(base: Path, method: str, *more: str) -> tuple[configuration.RunSettings, list[Prompt]]:
    config = small(base, "policy.precision=float32", *more)
    return configuration.run_settings(config, "preference", method), make.records(config, "preference", "train")


def test_the_batch_split_changes_no_more_than_rounding(random_base: Path) -> None:
    """Noise and prompts are named by what they are for, so halves of a batch see the same numbers as the whole."""
    found = []
    for batch in (4, 8):
        settings, prompts = _settings(random_base, "star", f"rollout.batch={batch}")
        with RewardPool({"pickscore": 1.0}, settings.scorers, 0) as pool:
            training = session(settings, prompts, pool)
            found.append(sample_rollouts(training, prepare_epoch(training, 1)))
    split, whole = found
    torch.testing.assert_close(split.latents_RSCHW, whole.latents_RSCHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(split.log_prob_RTHW, whole.log_prob_RTHW, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(split.raw_RTOhw.float(), whole.raw_RTOhw.float(), rtol=1e-2, atol=1e-4)
    assert (split.prompt_B == whole.prompt_B).all()


def test_a_group_may_start_at_the_same_noise(random_base: Path) -> None:
    settings, prompts = _settings(random_base, "flow_grpo", "rollout.same_start=true")
    with RewardPool({"pickscore": 1.0}, settings.scorers, 0) as pool:
        training = session(settings, prompts, pool)
        found = sample_rollouts(training, prepare_epoch(training, 1))
    start, following = found.latents_RSCHW[:, 0], found.latents_RSCHW[:, 1]
    assert torch.equal(start[:1].expand(4, -1, -1, -1), start[:4]) and torch.equal(start[4:5].expand(4, -1, -1, -1), start[4:])
    assert not torch.equal(start[0], start[4]) and not torch.equal(following[0], following[1])


def test_steps_before_the_noise_are_sampled_once_a_group(random_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images go through the model as there are different ones, and every row gets what it would get alone."""
    window = (
        "rollout.window=1",
        "rollout.window_range=[2, 3]",
        "rollout.same_start=true",
        "rollout.batch=8",
        "rollout.steps=4",
    )
    settings, prompts = _settings(random_base, "star", *window)
    with RewardPool({"pickscore": 1.0}, settings.scorers, 0) as pool:
        training = session(settings, prompts, pool)
        model, epoch = training.learner.policy.model, prepare_epoch(training, 1)
        sizes, velocity = [], model.velocity
        monkeypatch.setattr(model, "velocity", lambda x_BCHW, *more: sizes.append(len(x_BCHW)) or velocity(x_BCHW, *more))
        found = sample_rollouts(training, epoch)
    assert sizes == [2, 2, 8, 8]
    latents, schedule = model.geometry.latents, epoch.schedule
    two = torch.stack([noise((5, *latents), "any", row) for row in range(2)])
    apart, named = (denoise(model, two, text=epoch.text, schedule=schedule, twin_B=t) for t in (None, np.array([9, 4])))
    torch.testing.assert_close(named.latents_BSCHW, apart.latents_BSCHW)  # rows without a twin keep their places
    for row in (1, 6):  # the second image of the first prompt, the third of the second
        prompt, image = row // 4, np.int64(row % 4)  # of numpy, as in training: a key's repr names the noise
        alone = noise((1, 5, *latents), "rollout", 0, 1, epoch.ids[prompt], image)
        alone[:, 0] = noise(latents, "start", 0, 1, epoch.ids[prompt])
        text, columns = model.encode([epoch.prompts[prompt].text]), epoch.columns[prompt : prompt + 1]
        one = denoise(model, alone, text=text, schedule=schedule, recorder=Recorder(columns, (1, 3)))
        torch.testing.assert_close(found.latents_RSCHW[row], one.latents_BSCHW[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.log_prob_RTHW[row], one.log_prob_BTHW[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.raw_RTOhw[row].float(), one.raw_BTOhw[0].float(), rtol=1e-2, atol=1e-4)


def test_killed_and_resumed_equals_uninterrupted(random_base: Path, tmp_path: Path, scalar_run: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(small(random_base).model_dump(mode="json")))
    command = [sys.executable, "-m", "star.cli", "train", "--config", str(file), "--task", "preference"]
    command += ["--method", "flow_grpo", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/epoch0001/adapter").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = metrics(tmp_path / "run")
    assert numbers(rows) == numbers(metrics(scalar_run))
    files = sorted(f.relative_to(scalar_run) for f in scalar_run.rglob("*.safetensors"))
    assert len(files) > 3
    assert [f for f in files if (scalar_run / f).read_bytes() != (tmp_path / "run" / f).read_bytes()] == []


def _kill_scorers(process: subprocess.Popen) -> int:
    """Kill the scoring processes of a training, as the kernel does when memory runs out; returns how many."""
    killed = 0
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
                killed += 1
    return killed


def test_a_scorer_that_dies_twice_stops_the_run_which_goes_on(random_base: Path, tmp_path: Path, scalar_run: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(small(random_base, "scorers.workers=1").model_dump(mode="json")))
    command = [sys.executable, "-m", "star.cli", "train", "--config", str(file), "--task", "preference"]
    command += ["--method", "flow_grpo", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline, killed = time.monotonic() + 240, 0
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "run/checkpoints/epoch0001/adapter").exists():
            killed += _kill_scorers(process)
        time.sleep(0.01)
    error = process.stderr.read().strip().splitlines()
    assert process.returncode == 1 and killed >= 2
    assert (
        error[-1].startswith("star train: a scoring process (pickscore) died twice") and "the same command goes on" in error[-1]
    )
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) < 3
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert numbers(rows) == numbers(metrics(scalar_run))


def test_a_damaged_checkpoint_falls_back_and_other_settings_are_refused(
    random_base: Path, tmp_path: Path, scalar_run: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(scalar_run, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "checkpoints/epoch0003/state/weights.safetensors"
    damaged = weights.read_bytes()[:-1] + b"\0"
    weights.write_bytes(damaged)
    rows = train(random_base, tmp_path, "flow_grpo")
    assert "epoch0003: damaged" in capsys.readouterr().err
    assert numbers(rows) == numbers(metrics(scalar_run))
    assert (tmp_path / "checkpoints/epoch0003.damaged/state/weights.safetensors").read_bytes() == damaged
    with pytest.raises(InputError, match="other settings"):
        train(random_base, tmp_path, "flow_grpo", "optimizer.learning_rate=0.1")


def test_batches_that_do_not_divide_are_refused_before_work(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rollout\.batch: 3 does not divide"):
        train(random_base, tmp_path / "none", "star", "rollout.batch=3")
    assert not (tmp_path / "none").exists()


def test_the_window_is_drawn_inside_its_range_and_refused_outside(random_base: Path, tmp_path: Path) -> None:
    rollout = configuration.Rollout(steps=8, window=3, window_range=(1, 6))
    windows = {trained_steps(rollout, 0, epoch) for epoch in range(60)}
    assert windows == {range(1, 4), range(2, 5), range(3, 6)}
    with pytest.raises(InputError, match=r"rollout\.window: 3 steps do not fit"):
        train(random_base, tmp_path / "none", "star", "rollout.window=3", "rollout.window_range=[1, 4]")


def test_micro_batches_use_every_kept_rollout_once() -> None:
    kept = np.array([1, 4, 5, 7, 8, 9, 11])
    updates = micro_batches(kept, 3, 2, seed=0, epoch=1)
    counted = [row for batches in updates for rows, count in batches for row in rows[:count]]
    assert sorted(counted) == kept.tolist()
    assert all(len(rows) == 3 for batches in updates for rows, _ in batches)
    assert len(updates) == 2
    assert micro_batches(np.array([], int), 3, 2, seed=0, epoch=1) == []


@pytest.mark.parametrize("count", [0, 1, 2, 7, 48, 50, 96])
def test_equal_updates_have_as_many_rollouts_each(count: int) -> None:
    """Flow-GRPO's cut: 50 kept rollouts are 25 and 25, where filled micro-batches of 48 are 48 and 2, and 48 are one update."""
    updates = micro_batches(np.arange(count), 48, 2, seed=0, epoch=1, equal=True)
    counted = [[row for rows, count in batches for row in rows[:count]] for batches in updates]
    assert sorted(row for update in counted for row in update) == list(range(count))
    assert [len(update) for update in counted] == {0: [], 1: [1], 7: [4, 3]}.get(count, [count // 2] * 2)
    assert all(len(rows) == 48 for batches in updates for rows, _ in batches)


def test_noise_has_its_own_seed_and_is_standard_normal() -> None:
    a = noise((40000,), "rollout", 0, 1, 2, 3)
    assert torch.equal(a, noise((40000,), "rollout", 0, 1, 2, 3))
    others = [noise((40000,), "rollout", *key) for key in ((1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4))]
    for b in others:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / 200
    assert abs(a.mean()) < 4 / 200 and abs(a.std() - 1) < 4 / 200


def test_maps_of_contrast_compare_the_latents_that_are_asked_for(random_base: Path) -> None:
    allocation = "methods.star.allocation={source: covariance, contrast_latents: predicted, blocks: []}"
    settings, prompts = _settings(random_base, "star", allocation)
    training = session(settings, prompts, None)
    epoch = prepare_epoch(training, 1)
    with RewardPool({"pickscore": 1.0}, settings.scorers, 0) as pool:
        rollouts = sample_rollouts(replace(training, pool=pool), epoch)
    assert rollouts.raw_RTOhw is None and epoch.columns is None
    x, policy = rollouts.latents_RSCHW, training.learner.policy
    with torch.no_grad():  # the clean picture that the latents between the steps predict, by the model itself
        at = [x[:, s] - sigma * policy.velocity(x[:, s], sigma.item(), epoch.text[torch.from_numpy(rollouts.prompt_B)])
              for s, sigma in enumerate(epoch.schedule.sigma)]  # fmt: skip
    expected = {"final": [x[:, -1]] * 3, "step": [x[:, s] for s in (1, 2, 3)], "predicted": [at[1], at[2], x[:, 3]]}
    for latents, compared in expected.items():
        for source in ("deviation", "covariance"):
            chosen = settings.allocation.model_copy(
                update={"source": source, "contrast_latents": latents, "leave_one_out": False}
            )
            found = with_contrast(chosen, rollouts, session=training, epoch=epoch, reward_B=rollouts.reward_B).contrast_RThw
            for t, x_RCHW in enumerate(compared):
                for b in range(len(x_RCHW)):
                    members = rollouts.prompt_B == rollouts.prompt_B[b]
                    d = x_RCHW[members].double() - x_RCHW[members].double().mean(0)
                    own = x_RCHW[b].double() - x_RCHW[members].double().mean(0)
                    reward = torch.from_numpy(rollouts.reward_B[members] - rollouts.reward_B[members].mean())
                    value = own if source == "deviation" else torch.einsum("b,bchw->chw", reward, d) / members.sum()
                    by_hand = (value**2).sum(0).unfold(0, 2, 2).unfold(1, 2, 2).mean((-1, -2))
                    torch.testing.assert_close(found[b, t].double(), by_hand, rtol=1e-3, atol=1e-7)
