"""The policy: a frozen flow model with one LoRA adapter that is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from star.config import Lora
from star.models import adapter
from star.models.attention import Recorder
from star.models.door import FlowModel, Text


class Policy:
    """A model with a fresh adapter made from `seed`. Raises InputError when a target names no module."""

    def __init__(self, model: FlowModel, lora: Lora, seed: int) -> None:
        self.model = model
        targets = list(lora.targets or model.lora_targets)
        self.parameters: list[nn.Parameter] = adapter.add_adapter(
            model.transformer, lora, targets=targets, seed=seed, device=model.device
        )

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: Text, recorder: Recorder | None = None
    ) -> torch.Tensor:
        """The model's velocity with the adapter, float32 [B, C, H, W]."""
        return self.model.velocity(x_BCHW, sigma, text, recorder)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: the adapter is switched off inside."""
        self.model.transformer.disable_adapters()
        try:
            yield
        finally:
            self.model.transformer.enable_adapters()

    @contextmanager
    def using(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Other values of the adapter's parameters, of the same shapes and on the same device, inside."""
        own = [parameter.data for parameter in self.parameters]
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, own, strict=True):
                parameter.data = value
