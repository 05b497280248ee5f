"""What the benchmark measures with: seconds and peak memory of parts, the matrix rate, FLOPs of the model, ratios of pairs."""

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from star.models.door import FlowModel, Text
from star.models.policy import Policy

_PEAK_RESET = Path("/proc/self/clear_refs")  # Linux alone can start the peak of a process afresh


def synchronize(device: torch.device) -> None:
    """Wait for what was sent to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PEAK_RESET.exists():
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory of the part before would count
        _PEAK_RESET.write_text("5")


def _memory(device: torch.device, kind: str) -> float:
    """Bytes in use (`now`) or the `peak`: CUDA's allocator, or the process's resident memory (nan where not Linux)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) if kind == "now" else torch.cuda.max_memory_allocated(device)
    if not _PEAK_RESET.exists():
        return float("nan")
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[kind]
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU; a CPU's memory is not limited here."""
    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


class Meter:
    """Adds up seconds and keeps the highest peak memory of named parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak: dict[str, float] = defaultdict(float)
        self.added: dict[str, float] = defaultdict(float)  # above what was in use when the part began

    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done inside as a (further) portion of the part `name`."""
        _start_peak(self.device)
        synchronize(self.device)
        before, began = _memory(self.device, "now"), time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - began
        peak = _memory(self.device, "peak")
        self.peak[name] = max(self.peak[name], peak)
        self.added[name] = max(self.added[name], peak - before)


def matrix_rate(device: torch.device, dtype: torch.dtype, rows: int, width: int, seconds: float = 1.0) -> float:
    """FLOP/s of `rows` tokens by the model's square and two MLP matrices, the fastest of them; medians over `seconds`."""
    rates = []
    for inner, outer in ((width, width), (width, 4 * width), (4 * width, width)):
        x, w = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(outer, inner, device=device, dtype=dtype)
        times: list[float] = []
        until = time.perf_counter() + seconds / 3
        while len(times) < 4 or time.perf_counter() < until:
            synchronize(device)
            began = time.perf_counter()
            for _ in range(10):
                F.linear(x, w)
            synchronize(device)
            times.append(time.perf_counter() - began)
        rates.append(10 * 2 * rows * inner * outer / np.median(times[1:]))
    return float(max(rates))


def count(work: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention in `work`, a multiply-add being two; compiled code runs uncompiled.

    torch's counter does not know the fused attention of the CPU: its formula is given here.
    """
    aten = torch.ops.aten
    missing = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=missing) as counter:
        work()
    return counter.get_total_flops()


@contextmanager
def checkpointing(model: FlowModel, on: bool) -> Iterator[None]:
    """Gradient checkpointing on or off inside."""
    transformer = model.transformer

    def switch(on: bool) -> None:
        (transformer.enable_gradient_checkpointing if on else transformer.disable_gradient_checkpointing)()

    before = transformer.is_gradient_checkpointing
    switch(on)
    try:
        yield
    finally:
        switch(before)


@dataclass(frozen=True)
class ImageFlops:
    """FLOPs of one image, with guidance where it is set: passes of the transformer at one step, and the decoder's."""

    forward: int
    backward: int
    reference: int
    decode: int


def image_flops(policy: Policy, text: Text) -> ImageFlops:
    """Count the passes for one image; nothing is computed twice (no checkpointing)."""
    model = policy.model
    x = torch.randn(1, *model.geometry.latents, device=model.device)

    def velocity() -> torch.Tensor:
        return policy.velocity(x, 0.5, text)

    def forward() -> None:
        with torch.no_grad():
            velocity()

    def reference() -> None:
        with policy.reference():
            forward()

    with checkpointing(model, on=False):
        once = count(forward)
        both = count(lambda: torch.autograd.grad(velocity().sum(), policy.parameters))
    return ImageFlops(once, both - once, count(reference), count(lambda: model.decode(x)))


def paired_ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Median of the ratios of pairs and its 95 % bootstrap interval; that of a single pair is the pair itself."""
    ratio = np.array(above) / np.array(below)
    if len(ratio) == 1:
        return (float(ratio[0]),) * 3
    low, high = bootstrap((ratio,), np.median, method="percentile", random_state=0).confidence_interval
    return float(np.median(ratio)), float(low), float(high)
