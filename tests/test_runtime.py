"""What the package runs on: a device for every process, and a refusal where there is none."""

import pytest
import torch

from star.errors import InputError
from star.hub import weights
from star.runtime import pick_device
from star.training.processes import Processes


def test_a_process_without_a_gpu_of_its_own_is_refused_and_one_for_the_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: pytest.fail(f"device {number} of one"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match=r"compute\.processes: process 1 of this machine finds 1 GPU\(s\).*lower it"):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu" and Processes().rank == 0 and weights.resolve("cpu") == "cpu"
