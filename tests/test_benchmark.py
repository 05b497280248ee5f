"""The benchmark's own yardsticks: plain Flow-GRPO equals our trainer, counted FLOPs equal a closed form, refusals."""

from concurrent.futures import Future
from pathlib import Path

import flow_grpo
import measure
import numpy as np
import pytest
import sd35_medium
import torch
import training
from diffusers import SD3Transformer2DModel

from star import config as configuration
from star import prompts
from star.config import RunSettings
from star.policy.generator import Generator
from star.training.learner import Learner
from star.training.processes import Processes
from star.training.rollout import Rollouts, draw_prompts, epoch_schedule, sample_epoch, trained_steps
from star.training.update import update_policy

ROOT = Path(__file__).parents[1]
SMALL = ["rollout.steps=4", "rollout.groups=2", "rollout.group_size=6", "rollout.batch=4", "rollout.same_start=false"]
SMALL += ["rollout.trained_fraction=0.99", "training.updates_per_epoch=1", "policy.precision=float32"]
SMALL += ["training.clip_range=5e-3", "training.kl_beta=1.0", "training.max_grad_norm=1e9"]
WHOLE, WINDOW = ["rollout.window=null", "rollout.window_range=null"], ["rollout.window=2", "rollout.window_range=[0, 4]"]


class NoRewards:
    """Keeps the pictures that it should score."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []

    def submit(self, pictures: list[np.ndarray], records: list[dict]) -> Future:
        self.pictures += pictures
        done: Future = Future()
        done.set_result((np.zeros(len(pictures)), {}))
        return done


def _settings(base: Path, *more: str) -> tuple[RunSettings, list[dict]]:
    config = configuration.load(ROOT / "config/miniature.yaml", [*SMALL, f"policy.model={base}", *more])
    return configuration.run_settings(config, "pickscore", "flow_grpo"), prompts.records(config, "pickscore", "train")


def _disturb(parameters: list[torch.nn.Parameter], size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator), alpha=size)


def _ours(
    settings: RunSettings, learner: Learner, records: list[dict], ids: list[int], pool: NoRewards
) -> tuple[Rollouts, dict, range]:
    """Rollouts of our trainer, and the arguments that its update shares with them."""
    policy, rollout = learner.policy, settings.rollout
    steps, chosen = trained_steps(rollout, 0, 1), [records[i] for i in ids]
    schedule, encoded, empty = epoch_schedule(policy, rollout, steps), policy.encode(chosen), policy.empty_prompt()
    rollouts = sample_epoch(
        policy, rollout, schedule, chosen, ids, encoded, empty, pool, Processes(), 0, 1, record_maps=False, region=None
    )
    return rollouts, {"schedule": schedule, "records": chosen, "prompts": encoded, "empty": empty}, steps


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, WHOLE), (2.5, WINDOW)])
def test_plain_flow_grpo_is_the_scalar_method(random_base: Path, guidance: float, steps: list[str]) -> None:
    """Same noise and prompts, written twice: pictures, latents, log-probabilities, losses and the gradient of an epoch."""
    settings, records = _settings(random_base, f"policy.guidance={guidance}", *steps)
    rollout, training_ = settings.rollout, settings.training
    learner = Learner(Generator(settings.policy), training_, seed=0)
    policy, pool, ids = learner.policy, NoRewards(), draw_prompts(rollout.groups, len(records), 0, 1)
    _disturb(learner.parameters, 0.2, seed=1)  # a policy that differs from its reference
    noises, sample = [], policy.sample

    def listening(noise_BSCHW: torch.Tensor, *more: object) -> object:
        noises.append(noise_BSCHW)
        return sample(noise_BSCHW, *more)

    policy.sample = listening
    ours, shared, trained = _ours(settings, learner, records, ids, pool)

    plain = flow_grpo.FlowGrpo(policy.pipe, settings.policy, rollout, training_, policy.device)
    with flow_grpo.stock_attention(policy.transformer):
        text = plain.encode([records[i]["prompt"] for i in ids for _ in range(rollout.group_size)])
        theirs, pictures = plain.sample(*text, torch.cat(noises), trained)
    assert abs(np.stack(pictures).astype(int) - np.stack(pool.pictures)).max() <= 1
    torch.testing.assert_close(theirs.latents_BSCHW, ours.latents_RSCHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.log_prob_BT, ours.log_prob_RTHW.mean((2, 3)), rtol=1e-4, atol=1e-4)

    _disturb(learner.parameters, 0.01, seed=2)  # ratios off 1, some of them clipped
    advantage_B = np.random.default_rng(0).normal(size=len(ours.reward_B))
    advantage_B[[1, 2, 6, 9]] = 0  # are dropped
    gradients = []

    def keep(*_: object) -> float:
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
        learner.optimizer.zero_grad()
        return 0.0

    learner.step = learner.optimizer.step = keep
    row = update_policy(
        learner,
        training_,
        "weighted",
        shared["schedule"],
        trained,
        ours,
        None,
        advantage_B,
        shared["records"],
        shared["prompts"],
        shared["empty"],
        Processes(),
        batch=rollout.batch,
        seed=0,
        epoch=1,
        expect_ratio_one=False,
    )
    print({k: row[k] for k in row})
    with flow_grpo.stock_attention(policy.transformer):
        found = plain.update(theirs, torch.from_numpy(advantage_B).float(), trained, learner.optimizer)
    assert 0 < row["clip_fraction"] < 1 and row["kl"] > 0
    for name, value in found.items():
        assert value == pytest.approx(row[name], rel=1e-4), name
    mine, plains = gradients
    torch.testing.assert_close(plains, mine, rtol=1e-3, atol=1e-4 * mine.abs().max().item())
