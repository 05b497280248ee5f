"""One batch's gradients of the policy loss under many maps: one graph a point, one backward pass a map.

At ratio 1 the gradient is linear in the map, and needs neither the KL nor the clip. Points, losses and weights are those of an
epoch with one update.

Shapes: R rollouts, M micro-batch, T steps, O recorded blocks, H W latents, h w token grid, P coordinates of the adapter.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from star.allocation.columns import CoreColumns, core_columns
from star.allocation.sources import looks_at_attention
from star.config import Allocation
from star.credit.allocations import OCTILE, SCALAR, look, looks
from star.models.attention import Recorder
from star.objectives.points import Point, Transition
from star.training.epoch import Epoch, Session, advantages
from star.training.maps import PointMaps, make_maps, with_contrast
from star.training.rollout import Rollouts
from star.training.update import fetch, kept_rollouts, micro_batches, velocities_at

OCTILES = 8


def steps_of(session: Session, epoch: Epoch) -> list[int]:
    """The denoising steps that an epoch trains; in a forward-process objective the numbers of a sample's times."""
    trained = epoch.trained
    return list(trained) if session.objective.noisy else list(range(session.objective.points_a_sample(trained)))


def gradients(
    session: Session, epoch: Epoch, rollouts: Rollouts, *, rows: Collection[str], allocations: Mapping[str, Allocation]
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Parts (row, step, gradient float32 [P]) that add up to the gradients of the whole batch.

    A row is `scalar`, the name of an allocation, or `<name>.octile<k>`: the scalar gradient of the k-th eighth of the places
    alone, ordered by that allocation's map, 1 having the least weight.
    """
    learner, objective = session.learner, session.objective
    device, scale = learner.policy.device, learner.scaler.get_scale()

    # The rollouts that an update would keep, in its micro-batches.
    advantage_B = advantages(session, rollouts)
    kept = kept_rollouts(objective, advantage_B)
    if not len(kept):
        return
    (batches,) = micro_batches(kept, session.settings.rollout.batch, 1, seed=epoch.seed, epoch=epoch.number)
    total = len(kept) * objective.points_a_sample(epoch.trained)
    of_rows = {row.partition(OCTILE)[0] for row in rows} - {SCALAR}
    chosen = {name: allocations[name] for name in sorted(of_rows)}
    maps = _Maps(session, epoch, rollouts, allocations=chosen, advantage_B=advantage_B)
    read, _ = fetch(rollouts, None, trained=epoch.trained, updates=[[batches]], processes=session.processes)

    # One graph a point, one backward pass a map.
    for rows_M, count in batches:
        text = epoch.text[torch.from_numpy(rollouts.prompt_B[rows_M])]
        advantage_M = torch.from_numpy(advantage_B[rows_M]).float().to(device)
        weight_M = (torch.arange(len(rows_M), device=device) < count).float() * (scale / total)
        for point in objective.points(epoch, read, rows_M):
            point = point.to(device)
            map_of = maps.at(point, rows_M)
            asks = objective.asks - {"reference"}
            velocities = velocities_at(learner, point, text, asks=asks, recorder=None)
            for row in rows:
                name, _, octile = row.partition(OCTILE)
                map_MHW = eighths(map_of[name])[int(octile) - 1] if octile else map_of.get(name)  # none: scalar
                terms = objective.terms(point, velocities=velocities, advantage_M=advantage_M, map_MHW=map_MHW)
                weight, loss_M = terms.parts["policy_loss"]
                loss = weight * (loss_M * weight_M).sum()
                parts = torch.autograd.grad(loss, learner.parameters, retain_graph=True)
                yield row, point.step, torch.cat([part.flatten() for part in parts]).float() / scale


def eighths(map_MHW: torch.Tensor) -> list[torch.Tensor]:
    """Ones at the places of each eighth of every map, least weight first, and zeros elsewhere: eight of [M, H, W].

    Places of equal weight are parted by their order.
    """
    places = map_MHW[0].numel()
    rank_MN = map_MHW.flatten(1).argsort(dim=1, stable=True).argsort(1)
    octile_MHW = (rank_MN * OCTILES // places).view_as(map_MHW)
    return [(octile_MHW == k).to(map_MHW) for k in range(OCTILES)]


@dataclass(frozen=True)
class _Look:
    """Attention that is recorded at once: the columns of its tokens, its heads, and the blocks of all who look so."""

    columns: CoreColumns
    blocks: tuple[int, ...]
    heads: tuple[int, ...] | None

    def recorder(self, prompt_M: np.ndarray) -> Recorder:
        return Recorder(self.columns[torch.from_numpy(prompt_M)], self.blocks, self.heads)


class _Maps:
    """The maps of all allocations on one set of rollouts."""

    def __init__(
        self,
        session: Session,
        epoch: Epoch,
        rollouts: Rollouts,
        *,
        allocations: Mapping[str, Allocation],
        advantage_B: np.ndarray,
    ) -> None:
        self.session, self.epoch, self.rollouts, self.allocations = session, epoch, rollouts, allocations
        self.compared = {
            name: with_contrast(allocation, rollouts, session=session, epoch=epoch, reward_B=advantage_B)
            for name, allocation in allocations.items()
        }
        model = session.learner.policy.model
        self.looks = {
            key: _Look(
                core_columns(model, epoch.prompts, key[0] if isinstance(key[0], str) else list(key[0])), tuple(blocks), key[1]
            )
            for key, blocks in looks(allocations.values()).items()
        }
        self.of_trajectories = self._of_trajectories() if session.objective.noisy else {}

    def at(self, point: Point, rows_M: np.ndarray) -> dict[str, torch.Tensor]:
        """The maps [M, H, W] of some rollouts at a point, by allocation."""
        device = self.session.learner.policy.device
        if isinstance(point, Transition):
            places = self.rollouts.places(rows_M)
            return {name: map_RTHW[places, point.index].to(device) for name, map_RTHW in self.of_trajectories.items()}
        seen = {key: self._looked(key, rows_M, point) for key in self.looks}
        found = {}
        for name, allocation in self.allocations.items():
            recorder = None
            if looks_at_attention(allocation.source):
                recorder = replace(seen[look(allocation)], blocks=tuple(allocation.blocks))
            settings = self.session.settings.model_copy(update={"allocation": allocation})
            maps = PointMaps(replace(self.session, settings=settings), self.epoch, self.compared[name])
            found[name] = maps.at(point.index, rows_M, recorder).to(device)
        return found

    def _looked(self, key: tuple, rows_M: np.ndarray, point: Point) -> Recorder:
        """A recorder that has seen the old policy's pass at a point."""
        recorder, learner = self.looks[key].recorder(self.rollouts.prompt_B[rows_M]), self.session.learner
        text = self.epoch.text[torch.from_numpy(self.rollouts.prompt_B[rows_M])]
        with torch.no_grad(), learner.old_policy():
            learner.policy.velocity(point.x, point.sigma, text, recorder)
        return recorder

    def _of_trajectories(self) -> dict[str, torch.Tensor]:
        """The maps [R, T, H, W] of the trained steps, by allocation."""
        raw = {key: self._raw(key) for key in self.looks}
        found = {}
        for name, allocation in self.allocations.items():
            rollouts = self.compared[name]
            if looks_at_attention(allocation.source):
                blocks = self.looks[look(allocation)].blocks
                own = [blocks.index(block) for block in allocation.blocks]
                rollouts = replace(rollouts, raw_RTOhw=raw[look(allocation)][:, :, own])
            found[name] = make_maps(allocation, rollouts, self.epoch)
        return found

    def _raw(self, key: tuple) -> torch.Tensor:
        """What is seen by a look, half [R, T, O, h, w]: recorded with the rollouts, or replayed."""
        recorded, wanted = self.session.settings.allocation, self.looks[key]
        if look(recorded) == key and set(wanted.blocks) <= set(recorded.blocks):
            return self.rollouts.raw_RTOhw[:, :, [recorded.blocks.index(block) for block in wanted.blocks]]
        return self._replayed(wanted)

    def _replayed(self, of_look: _Look) -> torch.Tensor:
        """What is recorded at the latents of all steps of the rollouts, half [R, T, O, h, w]: one pass a step."""
        epoch, rollouts, policy = self.epoch, self.rollouts, self.session.learner.policy
        steps, parts = rollouts.latents_RSCHW.shape[1] - 1, []
        for rows in np.arange(len(rollouts.row_R)).reshape(-1, self.session.settings.rollout.batch):
            prompt_M = rollouts.prompt_B[rollouts.row_R[rows]]
            text, maps = epoch.text[torch.from_numpy(prompt_M)], []
            for t in range(steps):
                recorder = of_look.recorder(prompt_M)
                with torch.no_grad():
                    x = rollouts.latents_RSCHW[rows, t].to(policy.device)
                    policy.velocity(x, epoch.schedule.sigma[t].item(), text, recorder)
                maps.append(recorder.raw_maps().unflatten(-1, policy.model.geometry.tokens).half().cpu())
            parts.append(torch.stack(maps, 1))
        return torch.cat(parts)
