"""The door for flow models: what the rest of the package may ask of a base, and the one place where its class decides.

Outside of a model's file, latents are float32 [B, C, H, W] and a velocity is dx / dsigma: packing, position ids, the time's
convention, signs and the guidance rule are inside. A further family is one file here and one line in `_FAMILIES`.

Shapes: B batch, C latent channels, H W latent size, K core columns.
"""

import copy
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from star.allocation.columns import TextBlock
from star.errors import InputError
from star.models.attention import Recorder

if TYPE_CHECKING:
    import numpy as np

    from star.config import Compute, PolicySettings
    from star.models.family import Family

_FAMILIES = {  # class in model_index.json -> module:class
    "StableDiffusion3Pipeline": "star.models.sd3:SD3",
    "FluxPipeline": "star.models.flux:Flux",
    "QwenImagePipeline": "star.models.qwen_image:QwenImage",
    "ZImagePipeline": "star.models.z_image:ZImage",
    "Flux2KleinPipeline": "star.models.flux2:Flux2Klein",
}


@dataclass(frozen=True)
class Geometry:
    """Latent channels and size, and how many latents a side make a token."""

    channels: int
    height: int
    width: int
    patch: int

    @property
    def latents(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def tokens(self) -> tuple[int, int]:
        """(h, w), the grid of image tokens."""
        return self.height // self.patch, self.width // self.patch


class Text(Protocol):
    """Encoded prompts of one model, opaque outside of it; rows can be taken."""

    def __getitem__(self, rows: torch.Tensor) -> "Text": ...


class FlowModel(Protocol):
    """A frozen base on its device. Its `transformer` is what an adapter is added to."""

    settings: "PolicySettings"
    geometry: Geometry
    device: torch.device
    dtype: torch.dtype  # inside the transformer
    compiled: bool  # a compiled block is another program for another batch shape, and for gradients
    transformer: nn.Module
    blocks: Sequence[nn.Module]  # to shard, compile and checkpoint; attention of block i is recorded as i
    lora_targets: tuple[str, ...]  # what the field adapts by default
    passes: int  # forward passes that a velocity costs

    def watch(self, blocks: Sequence[int], heads: Sequence[int] | None = None) -> None:
        """Choose the blocks that can be recorded. Raises InputError when one does not exist."""

    def geometry_of(self, size: tuple[int, int]) -> Geometry:
        """The geometry of pictures of `size` (height, width). Raises InputError for a size that the base cannot draw."""

    def sigmas(self, steps: int) -> torch.Tensor:
        """The noise levels of `steps` steps and the final 0, float32 [steps + 1], by the base's own scheduler.

        Where that shifts them by the number of image tokens, they are those of `geometry`.
        """

    def encode(self, prompts: Sequence[str]) -> Text:
        """Encode prompts; the text encoders visit the device only meanwhile."""

    def text_blocks(self) -> list[TextBlock]:
        """The blocks of the text columns, in the columns' order."""

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: Text, recorder: Recorder | None = None
    ) -> torch.Tensor:
        """The guided velocity, float32 [B, C, H, W]; `recorder` keeps the conditional branch's maps.

        The latents' own size counts, whatever `geometry` says. `sigma` is the noise level of all samples, or float64 [B].
        """

    def decode(self, x_BCHW: torch.Tensor) -> "list[np.ndarray]":
        """Pictures of clean latents, uint8 [height, width, 3] each."""

    def pixels(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """What `decode` makes of latents before it rounds, -1 to 1, [B, 3, height, width]."""

    def save_lora(self, folder: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
        """Write an adapter as this family's pipelines load it; names and metadata are peft's."""

    def read_lora(self, folder: Path) -> tuple[dict[str, torch.Tensor], dict | None]:
        """An adapter's weights under peft's names and its metadata. Raises InputError for what is not the transformer's."""

    def text_encoders(self) -> Sequence[nn.Module]:
        """What `encode` brings to the device."""

    def decoder(self) -> nn.Module:
        """What `decode` runs."""

    def example_text(self, batch: int) -> Text:
        """Text of the true shapes whose content does not matter, for estimates without data."""


def time_of(sigma: float | torch.Tensor, batch: int, device: torch.device, scale: float = 1000.0) -> torch.Tensor:
    """`scale` times the noise level of every sample, float32 [B]: what a transformer takes for its time."""
    if isinstance(sigma, float):
        return torch.full((batch,), scale * sigma, device=device)
    return (scale * sigma).to(device, torch.float32)


def whole_tokens(size: tuple[int, int], factor: int, patch: int) -> tuple[int, int]:
    """The latents' (H, W) of pictures of `size`, pixels, where a latent is `factor` pixels a side and a token `patch` latents.

    Raises InputError where the tokens do not fill the picture: the pipelines would round it to another size.
    """
    if any(side % (factor * patch) for side in size):
        height, width = size
        raise InputError(f"policy.resolution: {height} x {width} is not in multiples of {factor * patch}, this base's tokens")
    return size[0] // factor, size[1] // factor


def token_shift(scheduler: Mapping[str, float], geometry: Geometry) -> float:
    """mu, the shift of the noise levels that a scheduler's configuration makes linear in the number of image tokens."""
    few, many = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    slope = (scheduler["max_shift"] - scheduler["base_shift"]) / (many - few)
    return slope * math.prod(geometry.tokens) + scheduler["base_shift"] - slope * few


def at(model: FlowModel, policy: "PolicySettings") -> FlowModel:
    """The same weights at the size of `policy`: geometry and noise levels are its own. Raises InputError as `geometry_of`."""
    if policy.size == model.settings.size:
        return model
    sized = copy.copy(model)
    sized.settings, sized.geometry = policy, model.geometry_of(policy.size)
    return sized


def load_model(settings: "PolicySettings", compute: "Compute | None" = None) -> FlowModel:
    """The base that `policy.model` names, by the class name in its model_index.json.

    Raises InputError, with the remedy, when folder, repository, licence or revision is missing, and for a family that is not
    known here.
    """
    from star.models.load import load_pipeline, pipeline_class

    family = _family(settings, pipeline_class(settings))
    return family(load_pipeline(settings), settings, compute)


def unloaded_model(settings: "PolicySettings", compute: "Compute | None" = None) -> FlowModel:
    """The base without weights, on the device `meta`, for estimates.

    Raises InputError as `load_model`, and not for weights that are missing where its configurations are known here.
    """
    from star.models.unloaded import pipeline

    pipe = pipeline(settings)
    return _family(settings, type(pipe).__name__)(pipe, settings, compute)


def text_blocks(settings: "PolicySettings") -> list[TextBlock]:
    """The blocks of a base's text columns, without its weights. Raises InputError as `load_model`."""
    from star.models.load import load_tokenizers, pipeline_class

    return _family(settings, pipeline_class(settings)).blocks_of(load_tokenizers(settings), settings)


def _family(settings: "PolicySettings", name: str) -> type["Family"]:
    """The class behind the door for a pipeline class. Raises InputError for one that is not known here."""
    if name not in _FAMILIES:
        raise InputError(f"policy.model: {settings.model} is a {name}; known here are {', '.join(_FAMILIES)}")
    module, _, family = _FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), family)
