"""Several processes as one training: each samples and updates with its share, and no number depends on how many there are.

`accelerate launch` and `torchrun` say in the environment how many there are and which one this is. Exchanges are small and few
an epoch, so all of them go through host memory (gloo); a sharded base moves its weights where they live (NCCL on GPUs).

Shapes: B rollouts of the epoch, R rollouts held by this process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from star.errors import InputError, Preempted

_STOPS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the closed terminal"}
_HANDED_ON = 3.0  # seconds in which a launcher hands on the Ctrl-C that a terminal has sent to everybody


class Processes:
    """The processes of this training, `count` in all; this one is `rank`. One alone needs no launcher and exchanges nothing."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._asked_to_stop: str | None = None  # by what
        self._asked_at = 0.0
        if (gpu := int(os.environ.get("LOCAL_RANK", 0))) < torch.cuda.device_count():  # else this one trains on the CPU
            torch.cuda.set_device(gpu)
        if self.count > 1 and not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(hours=2))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note SIGTERM, Ctrl-C and a closed terminal inside, for `stop_if_asked`; a second Ctrl-C ends the process at once.

        A signal that is ignored, as `nohup` has it, stays ignored.
        """
        heeded = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        again = number == signal.SIGINT and self._asked_to_stop == _STOPS[signal.SIGINT]
        if again and (self.count == 1 or time.monotonic() - self._asked_at > _HANDED_ON):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._asked_to_stop is None:
            self._asked_to_stop, self._asked_at = _STOPS[signal.Signals(number)], time.monotonic()
            if number == signal.SIGINT and self.rank == 0 and sys.stderr.isatty():  # a person waits
                os.write(
                    sys.stderr.fileno(),
                    b"\nstopping; Ctrl-C again ends at once, and the epochs since the last state are lost\n",
                )

    def stop_if_asked(self) -> None:
        """Raise Preempted in every process when one of them was asked to stop. All must call it equally often."""
        asked = self._asked_to_stop
        if self.count > 1:
            flag = torch.tensor(list(_STOPS.values()).index(asked) + 1 if asked else 0)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            asked = list(_STOPS.values())[int(flag) - 1] if flag else None
        if asked:
            raise Preempted(f"stopped by {asked}")

    def share(self, items: Sequence) -> Sequence:
        """This process's part of `items`: every count-th."""
        return items[self.rank :: self.count]

    def gather(self, value: Any) -> list:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """The first value by rank that is not None, in all; None when all are."""
        return next((each for each in self.gather(value) if each is not None), None)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all. An InputError there is raised in all."""
        made = error = None
        if self.rank == 0:
            try:
                made = make()
            except InputError as raised:
                error = raised
        made, error = self.gather((made, error))[0]
        if error is not None:
            raise error
        return made

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the processes of a tensor on the CPU."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def in_order(self, value_R: torch.Tensor, row_R: np.ndarray) -> torch.Tensor:
        """Values of this process's rollouts, whose places in the epoch are `row_R`, to those of all rollouts, [B, ...]."""
        if self.count == 1:
            return value_R
        parts = self.gather((value_R, row_R))
        return torch.cat([value for value, _ in parts])[np.argsort(np.concatenate([row for _, row in parts]))]

    def exchange(
        self, tensor_R: torch.Tensor, row_R: np.ndarray, wanted: list[np.ndarray], owner_B: np.ndarray
    ) -> torch.Tensor:
        """Rows that this process wants, in the order of `wanted[rank]`, from the processes that hold them.

        `row_R` are the rollouts that `tensor_R` holds, `wanted` what every process wants, `owner_B` who holds what.
        """
        mine = wanted[self.rank]
        place = {row: i for i, row in enumerate(row_R.tolist())}
        sent = [[place[row] for row in rows[owner_B[rows] == self.rank].tolist()] for rows in wanted]
        ours = tensor_R[[i for rows in sent for i in rows]].contiguous()
        if self.count == 1:
            return ours
        width = ours[:1].numel() * ours.element_size() if len(ours) else 0
        width = max(self.gather(width))  # a process may have nothing to send
        arrived = torch.empty(len(mine) * width, dtype=torch.uint8)
        received = [int((owner_B[mine] == source).sum()) * width for source in range(self.count)]
        distributed.all_to_all_single(arrived, ours.flatten().view(torch.uint8), received, [len(rows) * width for rows in sent])
        rows = np.concatenate([mine[owner_B[mine] == source] for source in range(self.count)])
        there = {row: i for i, row in enumerate(rows.tolist())}
        shaped = arrived.view(tensor_R.dtype).view(len(mine), *tensor_R.shape[1:])
        return shaped[[there[row] for row in mine.tolist()]]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        if self.count == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in parameters]).cpu()
        distributed.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(grad.view_as(p))

    def close(self) -> None:
        """Leave the group of processes."""
        if distributed.is_initialized():  # also that of one process, whose base is offloaded
            distributed.destroy_process_group()
