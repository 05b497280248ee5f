"""Batch by batch: rollouts, gradients under every map, and files of projected gradients, whole or not at all.

A batch is what one epoch samples. (seed, number) name all its random numbers, so a stopped measurement goes on to the same
bytes. The first batches only give AdamW's scale of every coordinate.

Shapes: K batches, T trained steps, D dimensions of the projection, P coordinates of the adapter.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from star import code
from star.config import Allocation, RunSettings
from star.config.key import counted, digest, weights_digest
from star.credit.allocations import OCTILE, SCALAR, look, looks
from star.credit.gradients import OCTILES, gradients, steps_of
from star.credit.projection import Projection
from star.errors import InputError
from star.files import whole, write_json
from star.models import adapter
from star.objectives.door import make_objective
from star.prompts.record import Prompt
from star.scoring.pool import RewardPool
from star.training import checkpoint
from star.training.epoch import Epoch, Session, prepare_epoch
from star.training.learner import Learner
from star.training.maps import needs_means
from star.training.processes import Processes
from star.training.rollout import Rollouts, sample_rollouts
from star.training.train import check, make_policy
from star.worlds.door import world

ABOUT = "measurement.json"
PILOTS = 8  # batches that give AdamW's scale


@dataclass(frozen=True)
class Measurement:
    """What is measured: `settings` without a map, the `allocations` by name, and whose map cuts the places into octiles.

    `adapter` is a folder with the weights of the policy, none for a fresh adapter; `dimensions` those of the projection.
    """

    settings: RunSettings
    allocations: dict[str, Allocation]
    octiles: str | None = None
    adapter: Path | None = None
    dimensions: int = 16384
    seed: int = 0

    @property
    def rows(self) -> list[str]:
        """What has gradients: the scalar objective, the allocations, the octiles."""
        parts = [f"{self.octiles}{OCTILE}{k + 1}" for k in range(OCTILES)] if self.octiles else []
        return [SCALAR, *self.allocations, *parts]

    @property
    def key(self) -> str:
        """What the gradients depend on, but for the allocation and the batch's number."""
        return digest(
            {
                "training": checkpoint.key_of(self.settings),
                "adapter": None if self.adapter is None else weights_digest(str(self.adapter), key="--adapter"),
                "dimensions": self.dimensions,
                "pilots": PILOTS,
                "seed": self.seed,
            }
        )


def batch_file(batch: Path, row: str) -> Path:
    """The file of a row in a batch's folder."""
    return batch / f"{row}.safetensors"


def measure(
    measurement: Measurement, prompts: list[Prompt], out: Path, *, batches: int, enough: Callable[[list[Path]], bool]
) -> list[Path]:
    """The folders of `batches` batches below `out`, with a file a row; what is there is kept.

    It stops early when `enough` says so of the whole ones. A file holds `steps` [T]; `sketch` [T, D], the projected gradients;
    `scaled_gram` [T, T], their inner products in AdamW's scale; the scalar objective's also `scaled` [T, D], the projected
    gradients in that scale.

    Raises InputError, before any work, for settings that do not fit and for a folder of another measurement; Preempted when
    asked to stop.
    """
    # What there is to go on from.
    for allocation in (_recording(measurement), *measurement.allocations.values()):
        check(measurement.settings.model_copy(update={"allocation": allocation}), prompts)
    _begin(measurement, out)
    folders = {number: out / "batches" / f"{number:04d}" for number in range(PILOTS + 1, PILOTS + batches + 1)}
    missing = {
        number: rows
        for number, folder in folders.items()
        if (rows := [row for row in measurement.rows if not batch_file(folder, row).exists()])
    }
    complete = [folder for number, folder in folders.items() if number not in missing]
    if not missing or enough(complete):
        return complete

    # The batches that are missing, or lack a row.
    with _session(measurement, prompts) as session:
        projection = Projection(_coordinates(session), measurement.dimensions, session.learner.policy.device)
        scale_P = _adamw_scale(session, out / "adamw_scale.safetensors")
        bar = tqdm(missing.items(), desc=f"credit {session.settings.task}", unit="batch", disable=None)
        for number, rows in bar:
            session.processes.stop_if_asked()
            epoch, rollouts = _sampled(session, number)
            sums = _Sums(projection, scale_P)
            parts = gradients(session, epoch, rollouts, rows=rows, allocations=measurement.allocations)
            for row, step, gradient_P in parts:
                sums.add(row, step, gradient_P)
            for row in rows:
                with whole(batch_file(folders[number], row)) as draft:
                    save_file(sums.tensors(row, steps_of(session, epoch)), draft)
            complete.append(folders[number])
            if enough(complete):
                break
    return sorted(complete)


class _Sums:
    """The projected gradients of a batch, by row and step."""

    def __init__(self, projection: Projection, scale_P: torch.Tensor) -> None:
        self.projection, self.scale_P = projection, scale_P
        self.sketch: dict[tuple[str, int], torch.Tensor] = {}
        self.scaled: dict[tuple[str, int], torch.Tensor] = {}

    def add(self, row: str, step: int, gradient_P: torch.Tensor) -> None:
        """Add a part of a gradient."""
        for sums, part_P in ((self.sketch, gradient_P), (self.scaled, gradient_P * self.scale_P)):
            sums[row, step] = sums.get((row, step), 0.0) + self.projection(part_P)

    def tensors(self, row: str, steps: list[int]) -> dict[str, torch.Tensor]:
        """What a row's file holds; zeros where there was nothing to learn."""
        zeros = torch.zeros(self.projection.dimensions, dtype=torch.float64)
        sketch, scaled = (torch.stack([sums.get((row, s), zeros) for s in steps]) for sums in (self.sketch, self.scaled))
        found = {"steps": torch.tensor(steps), "sketch": sketch.float(), "scaled_gram": scaled @ scaled.mT}
        return found | ({"scaled": scaled.float()} if row == SCALAR else {})


def _begin(measurement: Measurement, out: Path) -> None:
    """Write what is measured, or see that the folder is of the same measurement; its allocations may become more."""
    file, key = out / ABOUT, measurement.key
    known = about(out) if file.exists() else {"key": key, "allocations": {}}
    if known["key"] != key:
        raise InputError(f"{file}: the folder has a measurement of other settings, prompts or weights; name another --out")
    own = {name: counted(allocation) for name, allocation in measurement.allocations.items()}
    for name in own.keys() & known["allocations"]:
        if own[name] != known["allocations"][name]:
            raise InputError(f"{file}: `{name}` was measured with other settings; give it another name, or name another --out")
    code.record(out, "star.credit.measure", fresh=not file.exists())
    write_json(
        file,
        {
            "key": key,
            "task": measurement.settings.task,
            "objective": measurement.settings.objective.name,
            "noisy": make_objective(measurement.settings).noisy,
            "dimensions": measurement.dimensions,
            "adapter": None if measurement.adapter is None else str(measurement.adapter),
            "seed": measurement.seed,
            "allocations": dict(sorted((known["allocations"] | own).items())),
        },
    )


def set_aside(measurement: Measurement, out: Path) -> None:
    """Rename a folder that has another measurement; its key is then the end of its name."""
    if (out / ABOUT).exists() and (key := about(out)["key"]) != measurement.key:
        out.rename(out.with_name(f"{out.name}.{key}"))


def _recording(measurement: Measurement) -> Allocation:
    """An allocation under which rollouts keep what any of the measured ones needs; others' tokens and heads are replayed."""
    predicted = any(needs_means(allocation) for allocation in measurement.allocations.values())
    kept = {"source": "attention_deviation", "contrast_latents": "predicted"} if predicted else {"source": "attention"}
    recorded = Allocation(blocks=measurement.settings.allocation.blocks[:1] or [0], **kept)
    blocks = looks(measurement.allocations.values()).get(look(recorded), recorded.blocks)
    return recorded.model_copy(update={"blocks": blocks})


@contextmanager
def _session(measurement: Measurement, prompts: list[Prompt]) -> Iterator[Session]:
    """What batches share, with the policy that is measured."""
    settings = measurement.settings.model_copy(update={"allocation": _recording(measurement)})
    objective = make_objective(settings)
    policy = make_policy(settings, measurement.seed)
    for allocation in measurement.allocations.values():
        policy.model.watch(allocation.blocks, allocation.heads)  # refuses what does not exist
    policy.model.watch(range(len(policy.model.blocks)))  # whatever is measured, every pass runs the same kernels
    if measurement.adapter is not None:
        adapter.put_in(policy.model, measurement.adapter, settings.policy.lora)
    learner = Learner(policy, settings.optimizer, settings.training, keeps_old="old" in objective.asks)
    processes = Processes()
    with processes.watching(), RewardPool(settings.reward, settings.scorers, settings.scorers.workers) as pool:
        pool.check(prompts)
        regions = world(settings.prompts.world).regions
        yield Session(settings, measurement.seed, prompts, learner, objective, pool, processes, regions)


def _coordinates(session: Session) -> int:
    return sum(parameter.numel() for parameter in session.learner.parameters)


def _sampled(session: Session, number: int) -> tuple[Epoch, Rollouts]:
    epoch = prepare_epoch(session, number)
    return epoch, sample_rollouts(session, epoch)


def _adamw_scale(session: Session, file: Path) -> torch.Tensor:
    """1 / root mean square of every coordinate of the scalar batch gradient, float32 [P]; 0 where it has none.

    Of the first PILOTS batches, which are measured for nothing else.
    """
    if not file.exists():
        square_P = torch.zeros(_coordinates(session), dtype=torch.float64)
        for number in tqdm(range(1, PILOTS + 1), desc="AdamW's scale", unit="batch", disable=None):
            session.processes.stop_if_asked()
            batch_P = torch.zeros_like(square_P)
            for _, _, gradient_P in gradients(session, *_sampled(session, number), rows=[SCALAR], allocations={}):
                batch_P += gradient_P.cpu().double()
            square_P += batch_P**2 / PILOTS
        with whole(file) as draft:
            save_file({"scale": torch.where(square_P > 0, square_P.rsqrt(), 0.0).float()}, draft)
    return load_file(file)["scale"].to(session.learner.policy.device)


def read(batches: list[Path], row: str, tensor: str) -> torch.Tensor:
    """A tensor of a row of all batches, [K, ...]."""
    return torch.stack([load_file(batch_file(batch, row))[tensor] for batch in batches])


def about(out: Path) -> dict:
    """What a folder's measurement is of."""
    return json.loads((out / ABOUT).read_text(encoding="utf-8"))
