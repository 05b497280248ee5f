"""Every objective in a training: finite numbers, maps that matter, a run that goes on to the same bits; and refusals."""

from pathlib import Path

import numpy as np
import pytest
from trainings import config as small
from trainings import metrics, numbers, train

from star import config as configuration
from star.errors import InputError
from star.prompts import make
from star.training import train as trainer

OLD = ("nft", "pepg", "awm")  # which keep an old policy
MEASURED = ("flow_grpo", "nft")  # which measure their steps
METHODS = {  # objective and allocation
    "flow_grpo": ("{name: flow_grpo}", "{source: attention, time: measured, normalisation: per_trajectory}"),
    "guard": ("{name: guard, form: per_location}", "{source: covariance, contrast_latents: step, blocks: [], time: [2, 1]}"),
    "nft": ("{name: nft, form: per_location}", "{source: attention, control: random, time: equal_noise}"),
    "pepg": ("{name: pepg, drop_equal_groups: true}", "{source: oracle}"),
    "awm": ("{name: awm, times: 1, old_rate: 0.5}", "{source: deviation, blocks: []}"),
}


def _method(objective: str, allocation: str) -> str:
    """`--set` for a method `it`; config/miniature.yaml starts a group at the same noise, which needs noise later."""
    same_start = not any(f"name: {name}" in objective for name in OLD)
    rollout = f"{{same_start: {str(same_start).lower()}}}"
    return f"methods.it={{objective: {objective}, allocation: {allocation}, rollout: {rollout}}}"


def _bits(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Two epochs of an objective."""
    out = tmp_path_factory.mktemp(request.param)
    train(random_base, out, "it", _method(*METHODS[request.param]), "training.epochs=2")
    return request.param, out


def test_numbers_are_finite_and_the_policy_moves(trained: tuple[str, Path]) -> None:
    name, out = trained
    for row in metrics(out):
        assert all(np.isfinite(value) for value in row.values() if value is not None)
        assert row["grad_norm"] > 0 and row["update_norm"] > 0 and row["reward_std"] > 0
        assert {"loss", "policy_loss", "reward_pickscore", "seconds_update"} <= set(row)
        assert ("kl" in row) and ("old_distance" in row) == (name in OLD) and ("ratio_mean" in row) == (name not in OLD)
    first, second = metrics(out)
    if name in OLD:
        assert first["old_distance"] == 0 < second["old_distance"]  # one optimizer step an epoch
        assert first["kl"] == 0 < second["kl"]  # the fresh adapter is the base
    else:
        assert first["ratio_max_deviation"] == second["ratio_max_deviation"] == 0
    weights = [value for key, value in second.items() if key.startswith("weight_step")]
    assert len(weights) == (2 if name in MEASURED or name == "guard" else 0)
    if weights:
        assert np.mean(weights) == pytest.approx(1.0) and weights[0] != weights[1]
    assert any(key.startswith("signal_step") for key in second) == (name in MEASURED)
    states = {file.name for file in out.glob("checkpoints/epoch0002/state/*.safetensors")}
    assert ("old.safetensors" in states) == (name in OLD) and ("steps.safetensors" in states) == (name in MEASURED)


def test_one_epoch_and_one_more_are_the_bits_of_two(random_base: Path, tmp_path: Path, trained: tuple[str, Path]) -> None:
    name, whole = trained
    for epochs in (1, 2):
        rows = train(random_base, tmp_path, "it", _method(*METHODS[name]), f"training.epochs={epochs}")
    assert numbers(rows) == numbers(metrics(whole))
    assert _bits(tmp_path) == _bits(whole) and len(_bits(whole)) == 8 + 2 * (name in OLD) + 2 * (name in MEASURED)


def test_maps_change_the_update_and_not_the_first_rollouts_and_ones_are_the_scalar_objective(
    random_base: Path, tmp_path: Path, trained: tuple[str, Path]
) -> None:
    name, out = trained
    objective = METHODS[name][0].replace("per_location", "weighted")
    scalar, ones = (
        train(random_base, tmp_path / source, "it", _method(objective, f"{{source: {source}}}"), "training.epochs=1")[0]
        for source in ("none", "uniform")
    )
    assert {key: ones[key] for key in numbers([scalar])[0]} == numbers([scalar])[0]
    assert _bits(tmp_path / "none") == _bits(tmp_path / "uniform")
    first = metrics(out)[0]
    assert first["reward_mean"] == scalar["reward_mean"] and first["grad_norm"] != scalar["grad_norm"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["rollout.same_start=true"], r"rollout\.same_start: nft samples without noise .*; set it to false"),
        (["rollout.window=1"], r"rollout\.window: nft samples without noise .*; set it to null"),
        (["rollout.sampler=cps"], r"rollout\.sampler: nft samples without noise .*; leave cps out"),
        (["allocation.normalisation=per_trajectory"], r"allocation\.normalisation: nft .*; use per_step"),
        (
            ["methods.star.allocation={source: covariance, contrast_latents: step}"],
            r"allocation\.contrast_latents: nft .*; set it to final",
        ),
        (["allocation.steps=first"], r"allocation\.steps: nft .*; set it to each"),
        (
            ["objective.times=3"],
            r"objective\.times: 3 of 2 noise level\(s\) that may be trained; lower it, or raise rollout\.steps",
        ),
        (["allocation.time=[1, 2, 3]"], r"allocation\.time: 3 number\(s\) for 2 step\(s\) or time\(s\) .* from 0 to 1"),
        (["objective={name: awm, times: 2}"], r"objective\.times: 2 of 1 noise level\(s\)"),
        (["objective={name: awm, times: null}", "rollout.steps=2"], r"objective\.times: all of 0 noise level\(s\)"),
    ],
)
def test_what_clean_rollouts_do_not_have_is_refused_before_work(
    random_base: Path, tmp_path: Path, changes: list[str], key: str
) -> None:
    with pytest.raises(InputError, match=key) as refused:
        train(random_base, tmp_path / "none", "star", "objective={name: nft}", "rollout.same_start=false", *changes)
    assert "\n" not in str(refused.value) and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["methods.star.allocation={source: attention_deviation, blocks: []}"], r"allocation\.blocks: name the transformer"),
        (
            ["methods.star.allocation={source: covariance}", "rollout.group_size=2"],
            r"rollout\.group_size: 2 leaves one other rollout, .*; raise it to 3 or more, or set allocation\.leave_one_out",
        ),
    ],
)
def test_maps_of_contrast_without_what_they_need_are_refused_before_work(
    random_base: Path, tmp_path: Path, changes: list[str], key: str
) -> None:
    with pytest.raises(InputError, match=key) as refused:
        train(random_base, tmp_path / "none", "star", *changes)
    assert "\n" not in str(refused.value) and not (tmp_path / "none").exists()


def test_trajectory_objectives_may_have_all_of_it(random_base: Path) -> None:
    more = ("rollout.same_start=true", "rollout.window=1", "rollout.sampler=cps", "allocation.normalisation=per_trajectory")
    config = small(random_base, *more, "allocation.steps=first")
    for name in ("flow_grpo", "guard"):
        settings = configuration.run_settings(config, "preference", "star")
        chosen = {"flow_grpo": configuration.FlowGrpo, "guard": configuration.Guard}[name](name=name)
        trainer.check(settings.model_copy(update={"objective": chosen}), make.records(config, "preference", "train"))
