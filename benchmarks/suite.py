"""The measurements of benchmarks/training.py, what is quick first, each reported as soon as it is known.

docs/benchmarks.md says what each number means. Source: ours.
"""

import time
from collections import defaultdict

import numpy as np
import torch

from benchmarks import measure
from benchmarks.measure import ImageFlops, Meter
from benchmarks.report import Report
from benchmarks.work import METHODS, Work
from star.training.plan import memory_of

GIB = 2**30
FIRST = 2  # epoch of the first turn; 1 warms up


def matrix_rate(work: Work) -> float:
    """FLOP/s of products as large as the model's own: the tokens of a batch, its width, its precision."""
    model, config = work.policy.model, work.policy.model.transformer.config
    images, (height, width) = work.settings["star"].rollout.batch * model.passes, model.geometry.tokens
    tokens = images * height * width
    return measure.matrix_rate(model.device, model.dtype, tokens, config.num_attention_heads * config.attention_head_dim)


def report_memory(report: Report, work: Work) -> None:
    """The plan's estimate beside one forward and backward pass of a micro-batch, with gradient checkpointing and without."""
    policy, settings = work.policy, work.settings["star"]
    model, batch = policy.model, settings.rollout.batch
    text = model.encode([record.text for record in work.records[:batch]])
    x = torch.randn(batch, *model.geometry.latents, device=model.device)
    for on in (True, False):
        name, meter = f"activations, checkpointing {'on' if on else 'off'}", Meter(model.device)
        compute = settings.compute.model_copy(update={"gradient_checkpointing": on})
        with measure.checkpointing(model, on), torch.compiler.set_stance("force_eager"):
            estimate = memory_of(policy, settings.model_copy(update={"compute": compute}), 1)
            report.add(f"{name}, estimated", estimate.parts["activations"] / GIB, "GiB", note=f"micro-batch of {batch}")
            if compute == settings.compute:
                peak = estimate.phases[estimate.peak]
                report.add("peak of training, estimated", peak / GIB, "GiB", note=f"{estimate.peak}; workspaces not in it")
            if estimate.parts["activations"] > 0.9 * measure.free_memory(model.device):
                report.say(f"{name}: not measured, it would not fit")
                continue
            for part in ("first", "second"):  # the first makes workspaces and room for gradients
                with meter.part(part):
                    policy.velocity(x, 0.5, text).square().mean().backward()
            work.learner.optimizer.zero_grad(set_to_none=True)
            report.add(f"{name}, measured", meter.added["second"] / GIB, "GiB", note="peak of one forward and backward pass")


def take_turns(
    report: Report, work: Work, repeats: int, minutes: float, began: float
) -> tuple[dict[str, list[Meter]], list[Meter], list[float]]:
    """Warm up, then `repeats` turns, of which none but the first starts when it would end later than `minutes` after `began`.

    Returns the epochs of every method, what was measured alone, and the matrix rates.
    """
    for method in work.methods:
        _, row = work.epoch(method, 1, updates=1)
        if method in METHODS:
            report.add(f"{method}: largest ratio off 1", row["ratio_max_deviation"], "", note="before an update; 0 is exact")
    epochs, alone, rates, longest = defaultdict(list), [], [], 0.0
    for turn in range(repeats):
        started = time.perf_counter()
        if turn and started - began + longest > 60 * minutes:
            report.say(f"stopped after {turn} turns, --minutes {minutes:g}")
            break
        for i in range(len(work.methods)):
            method = work.methods[(i + turn) % len(work.methods)]
            meter, _ = work.epoch(method, turn + FIRST)
            epochs[method].append(meter)
            parts = "  ".join(f"{name} {seconds:.3f}" for name, seconds in meter.seconds.items())
            report.say(f"turn {turn + 1}  {method:<15}  {meter.total():.3f} s: {parts}")
        alone.append(work.alone())
        rates.append(matrix_rate(work))
        longest = max(longest, time.perf_counter() - started)
    return epochs, alone, rates


def report_method(
    report: Report, work: Work, method: str, epochs: list[Meter], flops: ImageFlops, rate: float, paper: int | None
) -> None:
    """One method's parts, images a second and shares of the matrix rate; an estimate for the `paper`'s images an epoch."""
    settings, n = work.settings["star"], len(epochs)
    rollout, checkpointed = settings.rollout, settings.compute.gradient_checkpointing
    images = rollout.groups * rollout.group_size
    passes, steps = np.mean([work.passes(method, turn + FIRST) for turn in range(n)], axis=0)
    parts = {name: float(np.median([m.seconds[name] for m in epochs])) for name in epochs[0].seconds}
    for name, seconds in parts.items():
        report.add(f"{method}: {name}", seconds, "s an epoch", n=n)
    for name in epochs[0].peak:
        report.add(f"{method}: peak memory, {name}", max(m.peak[name] for m in epochs) / GIB, "GiB", n=n)
    whole = float(np.median([m.total() for m in epochs]))
    report.add(f"{method}: images a second", images / whole, "images/s", n=n, note=f"epochs of {images}")
    if paper is not None:
        once = parts["encode"] if method in METHODS else 0
        estimate = once + paper * (whole - once) / images
        report.add(f"{method}: epoch of {paper} images", estimate, "s", n=n, note="estimate by image; ours encodes once")
    sampling = images * (passes * flops.forward + flops.decode)
    update = images * steps * (flops.forward + flops.backward + (flops.reference if settings.objective.kl_weight > 0 else 0))
    report.add(f"{method}: rollout, share of matrix rate", sampling / parts["rollout"] / rate, "", n=n)
    report.add(f"{method}: update, share of matrix rate", update / parts["update"] / rate, "", n=n)
    if checkpointed:
        again = update + images * steps * flops.forward
        report.add(f"{method}: update, share with recomputation", again / parts["update"] / rate, "", n=n)


def report_more(report: Report, name: str, star: list[float], scalar: list[float]) -> None:
    """How much longer STAR takes than the scalar method."""
    more = [100 * (ratio - 1) for ratio in measure.paired_ratio(star, scalar)]
    report.add(f"STAR over scalar, {name}", more[0], "% more", (more[1], more[2]), n=len(star), note="epochs of a turn paired")


def run(report: Report, work: Work, repeats: int, minutes: float, paper: int | None) -> None:
    """Measure everything and report it, what is quick first."""
    began, batch = time.perf_counter(), work.settings["star"].rollout.batch
    report.add(
        "matrix rate, at the start",
        matrix_rate(work) / 1e12,
        "TFLOP/s",
        note=str(work.policy.model.dtype).removeprefix("torch."),
    )
    flops = measure.image_flops(work.policy, work.policy.model.encode([work.records[0].text]))
    for name, value in vars(flops).items():
        report.add(f"{name} of an image", value / 1e9, "GFLOP")
    report_memory(report, work)
    epochs, alone, rates = take_turns(report, work, repeats, minutes, began)
    n, rate = len(alone), float(np.median(rates))
    report.add("matrix rate", rate / 1e12, "TFLOP/s", n=n)
    for part in ("decode", "reward"):
        report.add(f"{part} alone", float(np.median([m.seconds[part] for m in alone])) / batch, "s an image", n=n)
    for method in work.methods:
        report_method(report, work, method, epochs[method], flops, rate, paper)
    seconds = {method: [m.total() for m in epochs[method]] for method in work.methods}
    for plain in work.plain:
        for method in METHODS:
            ratio, *interval = measure.paired_ratio(seconds[plain], seconds[method])
            report.add(f"{method} over {plain}, images a second", ratio, "times", tuple(interval), n=n)
    report_more(report, "whole epoch", seconds["star"], seconds["flow_grpo"])
    for part in ("rollout", "update"):
        report_more(report, part, *([m.seconds[part] for m in epochs[method]] for method in ("star", "flow_grpo")))
    maps = [m.seconds["maps"] / whole for m, whole in zip(epochs["star"], seconds["star"], strict=True)]
    report.add("star: maps after the rollout, share of an epoch", 100 * float(np.median(maps)), "%", n=n)
    peak = {method: max(max(m.peak.values()) for m in epochs[method]) for method in METHODS}
    report.add("STAR over scalar, peak memory", 100 * (peak["star"] / peak["flow_grpo"] - 1), "% more", n=n)
