"""Spare groups: prompts whose pictures take the places of groups that all got the same reward."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import config, session

from star import config as configuration
from star.errors import InputError
from star.prompts import make
from star.prompts.record import Prompt
from star.training import train as trainer
from star.training.epoch import prepare_epoch, run_epoch
from star.training.rollout import Rollouts, sample_rollouts, with_spare_groups


class EqualForSome:
    """Rewards that are all equal for the prompts at some places of an epoch, and differ by the picture for the others."""

    def __init__(self, equal: set[str]) -> None:
        self.equal = equal

    def submit(self, pictures: list[np.ndarray], prompts: list[Prompt]) -> Future:
        reward = np.array(
            [0.0 if p.text in self.equal else picture.mean() / 255 for picture, p in zip(pictures, prompts, strict=True)]
        )
        scored: Future = Future()
        scored.set_result((reward, {"pickscore": reward}))
        return scored


def _held(rows: np.ndarray, reward_B: np.ndarray, first: int, size: int) -> Rollouts:
    """A process's part of an epoch whose latents are the rollout's own number."""
    prompt_B = first + np.repeat(np.arange(len(reward_B) // size), size)
    number_R = torch.from_numpy(1000.0 * prompt_B[rows] + rows % size).float()
    return Rollouts(
        latents_RSCHW=number_R[:, None, None, None, None],
        log_prob_RTHW=None,
        raw_RTOhw=None,
        mean_RTCHW=None,
        region_Rhw=None,
        row_R=rows,
        prompt_B=prompt_B,
        reward_B=reward_B,
        scorer_B={"pickscore": reward_B},
        sampled_N=reward_B,
        sampled_scorer_N={"pickscore": reward_B},
        seconds_rollout=1.0,
        seconds_reward=0.0,
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_groups_that_differ_take_the_places_of_equal_ones(processes: int) -> None:
    reward_B, spare_B = np.array([1, 1, 0, 1, 0, 0, 1, 1.0]), np.array([0, 0, 0, 1, 1, 0.0])  # groups of 2: 4, and 3 spare
    parts = [
        with_spare_groups(
            _held(np.arange(rank, 8, processes), reward_B, 0, 2), _held(np.arange(rank, 6, processes), spare_B, 4, 2), size=2
        )
        for rank in range(processes)
    ]
    assert sorted(np.concatenate([part.row_R for part in parts]).tolist()) == list(range(8))
    for part in parts:
        assert part.prompt_B.tolist() == [5, 5, 1, 1, 6, 6, 3, 3]  # the last equal group stays: no spare is left
        assert part.reward_B.tolist() == part.scorer_B["pickscore"].tolist() == [0, 1, 0, 1, 1, 0, 1, 1]
        assert part.sampled_N.tolist() == [*reward_B, *spare_B] == part.sampled_scorer_N["pickscore"].tolist()
        own = 1000 * part.prompt_B[part.row_R] + part.row_R % 2
        assert part.latents_RSCHW.flatten().tolist() == own.tolist()


@pytest.mark.parametrize("objective", ["flow_grpo", "nft"])
def test_an_epoch_with_spare_groups_learns_from_them_and_counts_their_images(random_base: Path, objective: str) -> None:
    chosen = config(random_base, "rollout.spare_groups=2", f"objective={{name: {objective}}}", "rollout.same_start=false")
    settings, records = configuration.run_settings(chosen, "preference", "star"), make.records(chosen, "preference", "train")
    made = session(settings, records, EqualForSome(set()))
    epoch = prepare_epoch(made, 1)
    made.pool.equal = {epoch.prompts[0].text, epoch.prompts[2].text}
    rollouts = sample_rollouts(made, epoch)
    assert rollouts.prompt_B.tolist() == [3] * 4 + [1] * 4
    row = run_epoch(made, 1, first=True)  # where rollout and update disagreed, a ratio would be off 1
    assert row["images"] == 16 and row["zero_advantage_share"] == 0 and row["grad_norm"] > 0
    assert row["reward_mean"] == pytest.approx(rollouts.sampled_N.mean()) and rollouts.sampled_N.min() == 0


def test_spare_groups_that_do_not_fit_are_refused(random_base: Path) -> None:
    chosen = config(random_base, "rollout.spare_groups=1", "rollout.batch=8")
    settings = configuration.run_settings(chosen, "preference", "star")
    with pytest.raises(InputError, match=r"rollout\.spare_groups: 4 images in batches of 8"):
        trainer.check(settings, make.records(chosen, "preference", "train"))
