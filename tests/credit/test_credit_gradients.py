"""Gradients under many maps on one graph: those of the update, linear in the map, and what finite differences say."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import config, session

from star import config as configuration
from star.allocation.spread import spread
from star.config import Allocation
from star.credit.gradients import eighths, gradients, steps_of
from star.flow.schedule import log_prob, step_mean
from star.models.load import block_count
from star.prompts import make
from star.scoring.pool import RewardPool
from star.training.epoch import Epoch, Session, prepare_epoch
from star.training.maps import make_maps, with_contrast
from star.training.rollout import Rollouts, sample_rollouts
from star.training.update import accumulate, micro_batches

NFT = ("objective={name: nft, kl_weight: 0}", "rollout.same_start=false")
FLOW = ("objective={name: flow_grpo, kl_weight: 0}",)


@contextmanager
def sampled(base: Path, *more: str) -> Iterator[tuple[Session, Epoch, Rollouts]]:
    """An epoch's rollouts, whose attention is recorded in blocks 1 and 3."""
    chosen = config(base, "policy.precision=float32", "rollout.group_size=6", *more)
    settings = configuration.run_settings(chosen, "preference", "star")
    prompts = make.records(chosen, "preference", "train")
    with RewardPool(settings.reward, settings.scorers, 0) as pool:
        made = session(settings, prompts, pool)
        epoch = prepare_epoch(made, 3)
        yield made, epoch, sample_rollouts(made, epoch)


def whole(
    made: Session, epoch: Epoch, rollouts: Rollouts, rows: list[str], allocations: dict[str, Allocation]
) -> dict[str, dict[int, torch.Tensor]]:
    """Gradients by row and step."""
    found: dict = defaultdict(dict)
    for row, step, gradient_P in gradients(made, epoch, rollouts, rows=rows, allocations=allocations):
        found[row][step] = found[row].get(step, 0.0) + gradient_P.double()
    return found


def of_update(made: Session, epoch: Epoch, rollouts: Rollouts, map_RTHW: torch.Tensor | None) -> torch.Tensor:
    """The gradient that one update of the whole epoch would take."""
    advantage_B = made.objective.advantages(rollouts.reward_B, rollouts.prompt_B)
    kept = np.flatnonzero(advantage_B) if made.objective.drops_zero_advantage else np.arange(len(advantage_B))
    (batches,) = micro_batches(kept, made.settings.rollout.batch, 1, seed=epoch.seed, epoch=epoch.number)
    accumulate(made, epoch, rollouts, batches=batches, advantage_B=advantage_B, map_RTHW=map_RTHW)
    found = torch.cat([p.grad.flatten() for p in made.learner.parameters]).double()
    made.learner.optimizer.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("objective", [FLOW, (*FLOW, "compute.gradient_checkpointing=true"), NFT], ids=["flow", "again", "nft"])
def test_they_are_the_updates(random_base: Path, objective: tuple[str, ...]) -> None:
    with sampled(random_base, *objective) as (made, epoch, rollouts):
        own = made.settings.allocation
        assert block_count(made.settings.policy) == len(made.learner.policy.model.blocks)
        assert own.source == "attention" and own.blocks == [1, 3]
        allocations = {"star": own, "contrast": own.model_copy(update={"source": "attention_covariance"})}
        found = whole(made, epoch, rollouts, ["scalar", *allocations], allocations)
        assert {row: sorted(steps) for row, steps in found.items()} == dict.fromkeys(found, steps_of(made, epoch))
        expected = {}
        for row, allocation in (allocations | {"scalar": Allocation()}).items():
            settings = made.settings.model_copy(update={"allocation": allocation})
            columns = epoch.columns if allocation.blocks else None
            compared = with_contrast(allocation, rollouts, session=made, epoch=epoch, reward_B=rollouts.reward_B)
            map_RTHW = make_maps(allocation, compared, epoch)
            of_row = replace(made, settings=settings), replace(epoch, columns=columns), compared
            expected[row] = of_update(*of_row, map_RTHW)
    size = expected["scalar"].norm().item()
    for row, gradient in expected.items():
        torch.testing.assert_close(sum(found[row].values()), gradient, rtol=1e-4, atol=1e-6 * size)
        assert row == "scalar" or (gradient - expected["scalar"]).norm() > 0.01 * size


def test_what_allocations_look_at_is_kept_apart(random_base: Path) -> None:
    own = Allocation(source="attention", blocks=[1], sharpness=2.0)
    others = {
        "one": own,
        "both": own.model_copy(update={"blocks": [1, 3]}),
        "head": own.model_copy(update={"heads": [0]}),
        "all": own.model_copy(update={"tokens": "all", "heads": [0, 1]}),
        "oracle": own.model_copy(update={"source": "oracle"}),
        "random": own.model_copy(update={"control": "random"}),
        "deviation": own.model_copy(update={"source": "deviation"}),
    }

    def regions(pictures: list[np.ndarray], prompts: object = ()) -> list[np.ndarray]:
        return [np.arange(64 * 64).reshape(64, 64) % 64 < 20 for _ in pictures]

    with sampled(random_base, *FLOW) as (made, epoch, _):
        rollouts = sample_rollouts(replace(made, regions=regions), epoch)
        together = whole(made, epoch, rollouts, list(others), others)
        for name in ("head", "deviation"):
            alone = whole(made, epoch, rollouts, [name], {name: others[name]})[name]
            assert all(torch.equal(together[name][step], gradient) for step, gradient in alone.items())
    norms = {name: sum(parts.values()).norm().item() for name, parts in together.items()}
    assert len({round(norm / max(norms.values()), 9) for norm in norms.values()}) == len(norms)


def test_eighths_of_the_places_add_up_to_the_scalar_gradient(random_base: Path) -> None:
    rows = ["scalar", *(f"star.octile{k}" for k in range(1, 9))]
    with sampled(random_base, *FLOW) as (made, epoch, rollouts):
        found = whole(made, epoch, rollouts, rows, {"star": made.settings.allocation})
    scalar = sum(found["scalar"].values())
    parts = [sum(found[row].values()) for row in rows[1:]]
    torch.testing.assert_close(sum(parts), scalar, rtol=1e-4, atol=1e-6 * scalar.norm().item())
    assert min(part.norm() for part in parts) > 0
    map_MHW = torch.tensor([[3.0, 1.0, 2.0, 2.0], [9.0, 8.0, 7.0, 0.0]]).view(1, 2, 4)
    ranks = [int(part.flatten().argmax()) for part in eighths(map_MHW)]
    assert ranks == [7, 1, 2, 3, 0, 6, 5, 4] and sum(eighths(map_MHW)).eq(1).all()


def test_contributions_of_places_by_finite_differences_say_the_same(random_base: Path) -> None:
    """The cheap form: <gradient, d> is the sum over places of the map times the change of the log-probability along d."""
    with sampled(random_base, *FLOW) as (made, epoch, rollouts):
        allocation, learner = made.settings.allocation, made.learner
        found = whole(made, epoch, rollouts, ["scalar", "star"], {"star": allocation})
        direction = sum(found["scalar"].values()).float()
        direction /= direction.norm()
        parts = direction.split([p.numel() for p in learner.parameters])
        moved = [part.view_as(p) for part, p in zip(parts, learner.parameters, strict=True)]
        advantage_B = made.objective.advantages(rollouts.reward_B, rollouts.prompt_B)
        kept = np.flatnonzero(advantage_B)
        map_RTHW, size = make_maps(allocation, rollouts, epoch), 1e-2
        text = epoch.text[torch.from_numpy(rollouts.prompt_B)]
        for index, step in enumerate(epoch.trained):
            x, x_next = rollouts.latents_RSCHW[:, step], rollouts.latents_RSCHW[:, step + 1]
            logs = []
            for sign in (size, -size):
                with (
                    torch.no_grad(),
                    learner.policy.using([p + sign * d for p, d in zip(learner.parameters, moved, strict=True)]),
                ):
                    v = learner.policy.velocity(x, epoch.schedule.sigma[step].item(), text)
                logs.append(log_prob(epoch.schedule, step, x_next, step_mean(epoch.schedule, step, x, v)).double())
            change_RHW = (logs[0] - logs[1]) / (2 * size)
            for row, map_RHW in (("scalar", None), ("star", map_RTHW[:, index].double())):
                change_R = spread(change_RHW, map_RHW).numpy()
                cheap = -(advantage_B * change_R)[kept].sum() / (len(kept) * len(epoch.trained))
                exact = float(found[row][step] @ direction.double())
                assert cheap == pytest.approx(exact, rel=2e-2)
