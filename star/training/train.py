"""Stage: training. Epochs, metrics.jsonl, checkpoints, resume; in as many processes as were launched."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from star import code
from star.allocation.columns import cut_prompts
from star.allocation.sources import contrast, looks_at_attention, recorded_blocks
from star.config import RunSettings, published_epochs
from star.errors import Diverged, InputError, Preempted, Stalled
from star.files import read_jsonl, write_json, write_text
from star.layout import Run
from star.models.door import FlowModel, load_model, unloaded_model
from star.models.memory import gathers, spread
from star.models.policy import Policy
from star.models.unloaded import configurations_of
from star.objectives.door import make_objective
from star.prompts.record import Prompt
from star.runtime import environment
from star.scoring.pool import RewardPool
from star.training import checkpoint, folder, health, pictures
from star.training.epoch import Session, last_trained, measured_steps, run_epoch, trained_steps, weighted_steps
from star.training.learner import Captured, Learner
from star.training.pictures import Pictures
from star.training.plan import describe, describe_device, describe_disk, describe_memory, standing_in, weightless
from star.training.processes import Processes
from star.worlds.door import world

if TYPE_CHECKING:
    from star.tracking.live import Live


@dataclass(frozen=True)
class Watched:
    """What can be watched of a training: pictures of fixed `prompts`, and MLflow, which `live` keeps up to date."""

    prompts: Sequence[Prompt] = ()
    live: "Live | None" = None


def check(settings: RunSettings, prompts: Sequence[Prompt], processes: int = 1) -> None:
    """Raise InputError where batches do not divide, prompts are too few or settings do not fit, before anything is loaded."""
    rollout = settings.rollout
    images = rollout.groups * rollout.group_size
    if images % rollout.batch:
        raise InputError(f"rollout.batch: {rollout.batch} does not divide groups x group_size = {images}")
    if images // rollout.batch % processes:
        raise InputError(
            f"rollout.batch: {images} images in batches of {rollout.batch} are {images // rollout.batch}, which {processes} "
            "processes cannot share evenly"
        )
    spare = rollout.spare_groups * rollout.group_size
    if spare % (rollout.batch * processes):
        raise InputError(
            f"rollout.spare_groups: {spare} images in batches of {rollout.batch} cannot be shared evenly by {processes} "
            "process(es)"
        )
    if len(prompts) < (groups := rollout.groups + rollout.spare_groups):
        raise InputError(f"rollout.groups: {groups} groups need as many prompts, the file has {len(prompts)}")
    if not any(settings.reward.values()):
        raise InputError("reward: every weight is 0, so nothing would be learned; give one scorer another")
    first, last = rollout.window_range or (0, rollout.steps)
    if rollout.window and not 0 <= first <= last - rollout.window <= rollout.steps - rollout.window:
        raise InputError(f"rollout.window: {rollout.window} steps do not fit into steps {first} to {last} of {rollout.steps}")
    _check_source(settings)
    objective = make_objective(settings)
    time, weighted = settings.allocation.time, weighted_steps(settings, objective)
    if not isinstance(time, str) and len(time) != len(weighted):
        raise InputError(
            f"allocation.time: {len(time)} number(s) for {len(weighted)} step(s) or time(s) that may be trained; give one "
            f"each, from {weighted.start} to {weighted.stop - 1}"
        )
    if settings.allocation.source == "oracle" and world(settings.prompts.world).regions([]) is None:
        raise InputError(f"allocation.source: oracle needs the true objects, which nobody knows of {settings.prompts.world}")
    if rollout.sampler == "cps" and last_trained(rollout) >= rollout.steps:
        raise InputError("rollout.sampler: cps adds no noise in the last step; train fewer (trained_fraction, window_range)")
    if not objective.noisy:
        _check_clean_rollouts(settings, len(objective.levels(trained_steps(rollout, 0, 1))))


def _check_source(settings: RunSettings) -> None:
    """Raise InputError for a source of maps that misses what it needs."""
    allocation, group_size = settings.allocation, settings.rollout.group_size
    compared = contrast(allocation.source)
    if allocation.source != "none" and not allocation.blocks and (compared is None or looks_at_attention(allocation.source)):
        raise InputError("allocation.blocks: name the transformer blocks whose attention makes the maps")
    if compared == "covariance" and allocation.leave_one_out and group_size < 3:
        raise InputError(
            f"rollout.group_size: {group_size} leaves one other rollout, which covaries with nothing; raise it to 3 or more, "
            "or set allocation.leave_one_out to false"
        )


def _check_clean_rollouts(settings: RunSettings, levels: int) -> None:
    """Raise InputError for what an objective that learns from clean pictures, at so many noise levels, cannot do."""
    rollout, objective = settings.rollout, settings.objective
    why = f"{objective.name} samples without noise and learns from clean pictures alone"
    if rollout.same_start:
        raise InputError(f"rollout.same_start: {why}, so a group would be one picture; set it to false")
    if rollout.window is not None:
        raise InputError(f"rollout.window: {why}, so no steps are noisy; set it to null, and see objective.times")
    if rollout.sampler != "flow_sde":
        raise InputError(f"rollout.sampler: {why}; leave {rollout.sampler} out, and see rollout.solver")
    if settings.allocation.normalisation == "per_trajectory":
        raise InputError(f"allocation.normalisation: {why}, and there is no trajectory to share weight over; use per_step")
    if contrast(settings.allocation.source) and settings.allocation.contrast_latents != "final":
        raise InputError(f"allocation.contrast_latents: {why}; set it to final")
    if settings.allocation.steps != "each":
        raise InputError(f"allocation.steps: {why}, and every noised point has its own map; set it to each")
    if levels < (objective.times or 1):
        raise InputError(
            f"objective.times: {objective.times or 'all'} of {levels} noise level(s) that may be trained; lower it, or raise "
            "rollout.steps or rollout.trained_fraction"
        )


def make_policy(settings: RunSettings, seed: int) -> Policy:
    """The base with a fresh adapter, its attention ready to be recorded where maps are made."""
    return _with_adapter(load_model(settings.policy, settings.compute), settings, seed)


def _with_adapter(model: FlowModel, settings: RunSettings, seed: int) -> Policy:
    if blocks := recorded_blocks(settings.allocation):
        model.watch(blocks, settings.allocation.heads)
    return Policy(model, settings.policy.lora, seed)


def plan(settings: RunSettings, seed: int, prompts: Sequence[Prompt]) -> None:
    """Print what `train` would do and need with compute.processes, and do nothing. Raises InputError as `train` does."""
    processes = settings.compute.processes
    check(settings, prompts, processes)
    chosen = weightless(settings.policy)
    with torch.device("meta"):
        policy = _with_adapter(unloaded_model(chosen, settings.compute), settings, seed)
    lines = describe(settings, processes, policy.model.passes)
    with standing_in(policy.model, settings.policy):
        lines += describe_memory(policy, settings, processes)
    lines += describe_disk(policy, settings)
    print(*lines, f"base     {configurations_of(chosen).source}: its configurations alone, no weights", sep="\n")


def train(
    settings: RunSettings,
    seed: int,
    prompts: Sequence[Prompt],
    out: Path,
    start_over: bool = False,
    watched: Watched = Watched(),
) -> None:
    """Train one method on one task into `out`, resuming from its newest checkpoint.

    Checkpoints of other settings or weights raise InputError, or are set aside to `start_over`. Raises InputError on settings
    that do not fit, on prompts that cannot be scored, on a folder that another training holds and on a full disk, before any
    work; RuntimeError when rollout and update disagree; ScorerFailed; Diverged on numbers that are not finite and above
    training.max_kl, after training.step_backs; Preempted, when asked to stop, after writing a checkpoint of the last whole
    epoch; Stalled, after writing one, where training.stop_without_advantage or training.stop_without_better says so.
    """
    processes = Processes()
    check(settings, prompts, processes.count)
    run, hold, key = Run(out), ExitStack(), checkpoint.key_of(settings)
    processes.from_first(lambda: hold.enter_context(folder.held(run.folder)))
    with hold:
        # What there is to go on from, and what is ahead.
        newest = processes.from_first(lambda: checkpoint.newest(run, key, settings.training.epochs, start_over))
        learner, untrained, done = _learner(settings, seed, run=run, newest=newest, processes=processes)
        if processes.rank == 0:
            _announce(settings, learner.policy, prompts, run=run, done=done, processes=processes.count)
        spread(learner.policy.model, settings.compute, processes.count)

        # Epochs, with scorers beside them.
        reward, workers = settings.reward, settings.scorers.workers
        live = watched.live if processes.rank == 0 and watched.live else nullcontext()
        with processes.watching(), RewardPool(reward, settings.scorers, workers) as pool, live:
            pool.check([*prompts, *watched.prompts])
            regions = world(settings.prompts.world).regions
            session = Session(settings, seed, prompts, learner, make_objective(settings), pool, processes, regions)
            _train_epochs(session, watched, run=run, key=key, done=done, untrained=untrained)
    processes.close()


def _learner(
    settings: RunSettings, seed: int, *, run: Run, newest: Path | None, processes: Processes
) -> tuple[Learner, Captured | None, int]:
    """The learner as it was at a checkpoint, as it began where it may step back to that, and the epochs that are done.

    Raises InputError when metrics of epochs that are done are missing, and when the disk has no room for what is to come.
    """
    objective = make_objective(settings)
    learner = Learner(
        make_policy(settings, seed),
        settings.optimizer,
        settings.training,
        keeps_old="old" in objective.asks,
        steps=measured_steps(settings, objective),
    )
    untrained = learner.capture() if settings.training.step_backs else None
    done = checkpoint.resume(newest, learner)
    processes.from_first(lambda: folder.keep_epochs(run.metrics, done))
    for earlier in processes.from_first(lambda: checkpoint.step_backs(run)):
        learner.slow_down(earlier["factor"])
    processes.from_first(lambda: folder.require_disk(run, learner, settings))
    return learner, untrained, done


def _train_epochs(session: Session, watched: Watched, *, run: Run, key: str, done: int, untrained: Captured | None) -> None:
    """The epochs after the first `done`, each with its line of metrics and, when it is time, its checkpoint."""
    settings, rank = session.settings, session.processes.rank
    bar = tqdm(
        initial=done,
        total=settings.training.epochs,
        desc=f"{settings.task} {settings.method} seed{session.seed}",
        unit="epoch",
        mininterval=0.1 if sys.stderr.isatty() else 20,
        disable=rank > 0,
    )
    with bar:
        fixed = Pictures(session, watched.prompts, run)
        fixed.begin(done)
        started = done
        while done < settings.training.epochs:
            epoch = done + 1
            try:
                row = _epoch_or_stop(session, epoch, first=done == started, run=run, key=key)
                _note(session, fixed, row, run)
                _require_near_base(settings, row)
            except Diverged as why:
                started = done = _step_back(session, why, epoch, run=run, key=key, untrained=untrained)
                fixed.begin(done)
                bar.update(done - bar.n)
                continue
            if rank == 0:
                _save_if_due(session, run, epoch, key)
                bar.set_postfix(reward=f"{row['reward_mean']:.3f}", refresh=False)
                if watched.live:
                    watched.live.wake()
            _stop_if_stalled(session, run, epoch, key)
            done = epoch
            bar.update()


def _announce(settings: RunSettings, policy: Policy, prompts: Sequence[Prompt], *, run: Run, done: int, processes: int) -> None:
    """Write what the run is and runs on, and say what is ahead."""
    write_text(run.settings, settings.model_dump_json(indent=1))
    here = environment(policy.device) | {"precision": str(policy.model.dtype)}
    write_json(run.environment, here)
    code.record(run.folder, "star.training.train", fresh=done == 0)
    lines = [*describe(settings, processes, policy.model.passes), describe_device(policy)]
    if policy.device.type == "cuda" and not gathers(settings.compute, processes):  # else not all of it is there
        lines += describe_memory(policy, settings, processes)
    if cut := cut_prompts(policy.model.text_blocks(), prompts):
        lines.append(cut)
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def _epoch_or_stop(session: Session, epoch: int, *, first: bool, run: Run, key: str) -> dict:
    """An epoch; when asked to stop in it, a checkpoint of the epoch before, and Preempted."""
    learner, processes = session.learner, session.processes
    before = learner.capture() if processes.rank == 0 else None
    try:
        return run_epoch(session, epoch, first)
    except Preempted as stop:
        kept = run.checkpoint(epoch - 1)
        if processes.rank == 0 and epoch > 1 and not kept.exists():
            checkpoint.save(kept, learner, before, epoch - 1, key)
        processes.gather(None)  # a launcher kills all when one leaves
        raise Preempted(f"{stop} in epoch {epoch}; the same command goes on from epoch {epoch - 1}") from None


def _note(session: Session, fixed: Pictures, row: dict, run: Run) -> None:
    """Draw an epoch's pictures when it is time, and write its line of metrics."""
    learner = session.learner
    if learner.step_backs:
        row |= {"step_backs": learner.step_backs, "learning_rate": learner.settings.learning_rate}
    if fixed.due(row["epoch"]):
        row |= fixed.take(row["epoch"])
    if session.processes.rank == 0:
        folder.add_line(run.metrics, row)


def _require_near_base(settings: RunSettings, row: dict) -> None:
    """Raise Diverged above training.max_kl."""
    max_kl = settings.training.max_kl
    if max_kl is not None and row["kl"] > max_kl:
        raise Diverged(f"KL to the base is {row['kl']:.3g}, above training.max_kl = {max_kl} (epoch {row['epoch']})")


def _step_back(session: Session, why: Diverged, epoch: int, *, run: Run, key: str, untrained: Captured | None) -> int:
    """Make the learner what it was before a divergence, with a lower rate; returns the epoch then.

    Raises the divergence again after as many step backs as training.step_backs allows.
    """
    learner, processes, training = session.learner, session.processes, session.settings.training
    if learner.step_backs >= training.step_backs:
        raise why
    factor = training.step_back_factor
    back_to = processes.from_first(lambda: checkpoint.step_back(run, key, epoch, factor=factor, why=str(why)))
    if back_to is None:
        learner.restore(untrained)
    done = checkpoint.resume(back_to, learner)
    learner.slow_down(factor)
    if processes.rank == 0:
        folder.keep_epochs(run.metrics, done)
        tqdm.write(
            f"warning: {why}; going on from epoch {done} at the learning rate {learner.settings.learning_rate:.3g}, step back "
            f"{learner.step_backs} of {training.step_backs} (training.step_backs)",
            file=sys.stderr,
        )
    return done


def _save_if_due(session: Session, run: Run, epoch: int, key: str) -> None:
    """Write the epoch's checkpoint when it is time."""
    settings = session.settings
    published, every = published_epochs(settings), settings.checkpoints.save_every
    if epoch in published or (every and epoch % every == 0):
        checkpoint.save(run.checkpoint(epoch), session.learner, session.learner.capture(), epoch, key)
        checkpoint.prune(run.checkpoints, settings.checkpoints.keep_states, published)


def _stop_if_stalled(session: Session, run: Run, epoch: int, key: str) -> None:
    """Raise Stalled in every process, a checkpoint kept, when the settings say that going on is of no use."""
    why = None
    if session.processes.rank == 0 and epoch < session.settings.training.epochs:
        why = _stalled(session, run)
        if why and not run.checkpoint(epoch).exists():
            checkpoint.save(run.checkpoint(epoch), session.learner, session.learner.capture(), epoch, key)
    if why := session.processes.gather(why)[0]:
        raise Stalled(f"{why} (epoch {epoch}); the last epoch is kept, and the same command goes on from it")


def _stalled(session: Session, run: Run) -> str | None:
    """Why going on is of no use, or None; warns half way there."""
    training = session.settings.training
    if limit := training.stop_without_advantage:
        idle = health.without_advantage(read_jsonl(run.metrics))
        said = (
            f"no image had an advantage for {idle} epochs: all images of every prompt got the same reward, nothing is learned"
        )
        if idle >= limit:
            return f"{said}; training.stop_without_advantage={limit} stops here, null goes on"
        if idle == -(-limit // 2):
            print(f"warning: {said} (docs/healthy.md)", file=sys.stderr, flush=True)
    if limit := training.stop_without_better:
        since = health.without_better(pictures.measured(run))
        if since >= limit:
            return (
                f"the reward on the fixed prompts has not risen {since} times in a row; {run.best} names the best checkpoint, "
                f"and training.stop_without_better={limit} stops here, null goes on"
            )
    return None
