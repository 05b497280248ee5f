"""What metrics.jsonl says of an update: plain means in numpy, and a loss that is not finite found with its place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from star.objectives.points import Terms
from star.training.metrics import Meter
from star.training.processes import Processes

BATCH = 3
PROMPTS = ["a circle", "a ring", "a star"]


def _drawn(seed: int) -> SimpleNamespace:
    """A micro-batch's numbers at one point."""
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        loss=rng.normal(size=BATCH), kl=rng.random(BATCH), share=rng.random(BATCH), ratio=1 + 0.1 * rng.normal(size=BATCH)
    )


def _add(meter: Meter, drawn: SimpleNamespace, *, count: int, total: int, step: int = 0, kl: float = 0.5) -> None:
    """Note a point as an update does: sums of what counts, over all samples and points."""
    tensor = {name: torch.from_numpy(value) for name, value in vars(drawn).items()}
    parts = {"policy_loss": (1.0, tensor["loss"]), "kl": (kl, tensor["kl"])}
    terms = Terms(parts=parts, means={"share": tensor["share"]}, ratio=tensor["ratio"])
    weight = (torch.arange(BATCH) < count).double() / total
    sums = {name: (part * weight).sum() for name, (_, part) in parts.items()}
    loss = sums["policy_loss"] + kl * sums["kl"]
    meter.add(terms, sums | {"loss": loss}, count=count, total=total, step=step, prompts=PROMPTS)


def _seen(*meters: Meter) -> dict[str, float]:
    everything = Meter(4)
    for meter in meters:
        everything.extend(meter)
    return everything.row(Processes())


def test_a_row_has_plain_means_over_the_samples_that_count_and_the_extremes_of_the_ratio() -> None:
    points, counts = [_drawn(i) for i in range(5)], [3, 3, 2, 0, 3]  # the fourth only fills up
    first, second = Meter(4), Meter(4)
    for i in range(4):
        _add(first, points[i], count=counts[i], total=8)
    _add(second, points[4], count=3, total=3)
    first.note(grad_norm=0.5, update_norm=0.25)
    second.note(grad_norm=1.5, update_norm=0.75)
    row = _seen(first, second)

    def means(name: str) -> list[float]:
        return [getattr(point, name)[:count].mean() for point, count in zip(points, counts, strict=True) if count]

    assert row["policy_loss"] == pytest.approx(np.mean(means("loss")))
    assert row["kl"] == pytest.approx(np.mean(means("kl")))
    assert row["loss"] == pytest.approx(np.mean(means("loss")) + 0.5 * np.mean(means("kl")))
    assert row["share"] == pytest.approx(np.mean(means("share")))
    ratio = np.concatenate([point.ratio[:count] for point, count in zip(points, counts, strict=True)])
    assert (row["ratio_min"], row["ratio_max"]) == pytest.approx((ratio.min(), ratio.max()))
    assert row["ratio_max_deviation"] == pytest.approx(abs(ratio - 1).max())
    assert (row["grad_norm"], row["update_norm"]) == (1.0, 0.5)
    counted = [point.ratio[:count] for point, count in zip(points, counts, strict=True) if count]
    assert row["ratio_deviation_step0"] == pytest.approx(np.mean([abs(each - 1).mean() for each in counted]))
    assert row["log_prob_change_step0"] == pytest.approx(np.mean([abs(np.log(each)).mean() for each in counted]), rel=1e-5)
    assert set(row) == {"policy_loss", "kl", "loss", "share", "grad_norm", "update_norm"} | {
        *("ratio_min", "ratio_max", "ratio_max_deviation", "ratio_deviation_step0", "log_prob_change_step0")
    }


def test_processes_are_averaged_and_one_without_samples_that_count_is_left_out() -> None:
    mine, other = Meter(4), Meter(4)
    _add(mine, _drawn(0), count=3, total=5)
    _add(other, _drawn(1), count=2, total=5)
    alone = _seen(mine, other)
    sent, ours, theirs = [], Meter(4), Meter(4)
    ours.extend(mine)
    theirs.extend(other)
    theirs.row(SimpleNamespace(gather=lambda own: sent.append(own) or [own]))
    assert ours.row(SimpleNamespace(gather=lambda own: [own, *sent, {}])) == pytest.approx(alone)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [("loss", torch.nan, "policy loss is nan"), ("kl", torch.inf, "KL to the base is inf")],
)
def test_a_loss_that_is_not_finite_is_named_with_part_step_and_prompt(part: str, value: float, said: str) -> None:
    meter = Meter(7)
    for step in (2, 3, 4):
        drawn = _drawn(step)
        if step >= 3:
            getattr(drawn, part)[1 if step == 3 else 0] = value
        _add(meter, drawn, count=1 if step == 3 else 3, total=9, step=step)  # a repeat that does not count is looked at too
    assert meter.not_finite() == f"{said} (epoch 7, denoising step 3, prompt 'a ring'); weights are untouched"
    fine = Meter(7)
    assert fine.not_finite() is None  # nothing was noted
    _add(fine, _drawn(0), count=3, total=3)
    assert fine.not_finite() is None


def test_a_ratio_off_one_before_the_first_update_is_refused_with_its_step() -> None:
    meter, drawn = Meter(1), _drawn(0)
    drawn.ratio = np.ones(BATCH)
    _add(meter, drawn, count=3, total=6)
    meter.require_ratio_one(0.0)
    drawn.ratio = np.array([1.0, 1.0, 1 - 1e-4])
    _add(meter, drawn, count=2, total=6, step=5)
    meter.require_ratio_one(2e-4)
    with pytest.raises(RuntimeError, match=r"ratio off 1 by 1\.0e-04 before the first update \(epoch 1, step 5\)"):
        meter.require_ratio_one(0.0)
    drawn.ratio = np.full(BATCH, np.nan)
    _add(meter, drawn, count=3, total=6, step=6)
    with pytest.raises(RuntimeError, match="ratio off 1 by nan"):
        meter.require_ratio_one(1.0)
