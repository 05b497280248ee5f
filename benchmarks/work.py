"""The work that is timed: one policy, and epochs of the scalar method, of STAR and of plain Flow-GRPO on it, measured by part.

Where a window of steps is trained there are two plain ones: with that window, and with noise on all steps and training on
`trained_fraction` of them, as first published. Apart from that all share weights, prompts, steps, batches and an optimizer
whose rate is next to nothing, so that they keep doing the same work. Advantages are drawn, so no rollout is dropped.
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks import flow_grpo
from benchmarks.measure import Meter
from star.config import RunSettings
from star.models.policy import Policy
from star.objectives.door import make_objective
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training.epoch import Session, draw_prompts, prepare_epoch, trained_steps
from star.training.learner import Learner
from star.training.maps import make_maps
from star.training.metrics import map_diagnostics
from star.training.processes import Processes
from star.training.rollout import Rollouts, sample_rollouts
from star.training.update import update_policy
from star.worlds.door import world

METHODS = ("flow_grpo", "star")


class Work:
    """One policy and its rewards, and an epoch of each method on them: seconds and peak bytes of its parts."""

    def __init__(self, settings: dict[str, RunSettings], policy: Policy, pool: RewardPool, records: list[Prompt]) -> None:
        self.settings, self.policy, self.pool, self.records = settings, policy, pool, records
        star, processes = settings["star"], Processes()
        self.learner, regions = Learner(policy, star.optimizer, star.training), world(star.prompts.world).regions
        self.sessions = {
            method: Session(one, 0, records, self.learner, make_objective(one), pool, processes, regions)
            for method, one in settings.items()
        }
        self.rollouts: Rollouts | None = None
        self.visit(policy.device)
        plain = {"plain": settings["flow_grpo"]}
        if plain["plain"].rollout.window is not None:
            all_steps = plain["plain"].rollout.model_copy(update={"window": None, "window_range": None})
            plain["plain_all_steps"] = plain["plain"].model_copy(update={"rollout": all_steps})
        self.plain = {name: flow_grpo.FlowGrpo(policy.model.pipe, one, policy.device) for name, one in plain.items()}
        self.methods = (*METHODS, *plain)
        self.visit(torch.device("cpu"))

    def visit(self, device: torch.device) -> None:
        """Move the text encoders, and what they leave free to others."""
        for encoder in self.policy.model.text_encoders():
            encoder.to(device)
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def epoch(self, method: str, epoch: int, updates: int | None = None) -> tuple[Meter, dict[str, float]]:
        """An epoch's measurements, and what the update says; with another number of `updates` than the settings'."""
        settings = self.settings.get(method, self.settings["flow_grpo"])
        ids = draw_prompts(settings.rollout.groups, len(self.records), 0, epoch)
        advantage_B = np.random.default_rng(epoch).normal(size=settings.rollout.groups * settings.rollout.group_size)
        if method in self.plain:
            with flow_grpo.stock_attention(self.policy.model.transformer), torch.compiler.set_stance("force_eager"):
                return self._plain(self.plain[method], ids, advantage_B, epoch)
        training = settings.training.model_copy(update={"updates_per_epoch": updates or settings.training.updates_per_epoch})
        session = replace(self.sessions[method], settings=settings.model_copy(update={"training": training}))
        return self._ours(session, advantage_B, epoch)

    def _ours(self, session: Session, advantage_B: np.ndarray, number: int) -> tuple[Meter, dict[str, float]]:
        meter, allocation = Meter(self.policy.device), session.settings.allocation
        with meter.part("encode"):
            epoch = prepare_epoch(session, number)
        with meter.part("rollout"):
            rollouts = sample_rollouts(session, epoch)
        meter.seconds["rollout"] -= rollouts.seconds_reward
        meter.seconds["reward"] = rollouts.seconds_reward  # what is left to wait for
        with meter.part("maps"):
            map_RTHW = make_maps(allocation, rollouts, epoch)
            map_diagnostics(map_RTHW, rollouts, allocation.blocks, session.processes)
        with meter.part("update"):
            row = update_policy(session, epoch, rollouts, advantage_B=advantage_B, map_RTHW=map_RTHW, expect_ratio_one=False)
        self.rollouts = rollouts
        return meter, row

    def _plain(
        self, plain: flow_grpo.FlowGrpo, ids: list[int], advantage_B: np.ndarray, epoch: int
    ) -> tuple[Meter, dict[str, float]]:
        rollout, meter = plain.rollout, Meter(self.policy.device)
        steps = trained_steps(rollout, 0, epoch)
        chosen = [self.records[i] for i in np.repeat(ids, rollout.group_size)]
        parts = []
        for start in range(0, len(chosen), rollout.batch):
            records = chosen[start : start + rollout.batch]
            self.visit(self.policy.device)
            with meter.part("encode"):
                text = plain.encode([r.text for r in records])
            self.visit(torch.device("cpu"))  # not counted; a small GPU has no room for them beside the rest
            with meter.part("rollout"):
                shape = (len(records), rollout.steps + 1, *self.policy.model.geometry.latents)
                samples, pictures = plain.sample(*text, torch.randn(shape, device=plain.device), steps)
            with meter.part("reward"):
                self.pool.submit(pictures, records).result()
            parts.append(samples)
        with meter.part("update"):
            row = plain.update(flow_grpo.joined(parts), torch.from_numpy(advantage_B).float(), steps, self.learner.optimizer)
        return meter, row

    def passes(self, method: str, epoch: int) -> tuple[float, int]:
        """Forward passes that an image takes in the rollout, and trained steps, each of them more passes in the update.

        Ours computes the steps before a window once for a group that starts alike, in each of its batches.
        """
        rollout = self.plain[method].rollout if method in self.plain else self.settings[method].rollout
        steps = trained_steps(rollout, 0, epoch)
        if method in self.plain or not rollout.same_start or self.policy.model.compiled:
            return rollout.steps, len(steps)
        batches = np.repeat(np.arange(rollout.groups), rollout.group_size).reshape(-1, rollout.batch)
        different = sum(len(set(rows)) for rows in batches.tolist()) / batches.size
        return rollout.steps - steps.start * (1 - different), len(steps)

    def alone(self) -> Meter:
        """Decoding and rewarding a batch of the last epoch, each with nothing beside it."""
        meter, rows = Meter(self.policy.device), slice(self.settings["star"].rollout.batch)
        latents = self.rollouts.latents_RSCHW[rows, -1].to(self.policy.device)
        with meter.part("decode"):
            pictures = self.policy.model.decode(latents)
        with meter.part("reward"):
            self.pool.submit(pictures, self.records[: len(pictures)]).result()
        return meter
