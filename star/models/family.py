"""What the families behind the door share: a frozen pipeline on its device, its text, guidance, pictures and adapters.

A family says how its transformer is called (`predict`), how its joint attention projects (`joint`), what its text columns are
(`text_blocks`), and what of the rest is its own.

Shapes: B batch, C latent channels, H W latent size, h w token grid, L text columns, E width of a column or token, P pooled
width, N image tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import PreTrainedTokenizerFast

from star.allocation.columns import TextBlock
from star.config import Compute
from star.config import PolicySettings as Settings
from star.errors import InputError
from star.layout import ADAPTER_FILE
from star.models.attention import JointAttention, Recorder, Tap, check_recordable, watched
from star.models.door import Geometry, token_shift, whole_tokens
from star.models.memory import starts_on
from star.runtime import pick_device, pick_precision

_ENCODED_AT_ONCE = 64  # prompts
_HERE = "\N{SYMBOL FOR NULL}"  # stands for the prompt in a rendered template


@dataclass(frozen=True)
class EncodedText:
    """Encoded prompts: text columns [B, L, E], pooled vectors [B, P] where a family has them, and the negative prompt, B = 1.

    `lengths` are the columns of each prompt, where the others are padding. `masked` says that prompts of several lengths were
    encoded together; a pass over any of them then takes the program with a mask, in rollout and update alike.
    """

    columns_BLE: torch.Tensor
    pooled_BP: torch.Tensor | None = None
    lengths: tuple[int, ...] | None = None
    masked: bool = False
    negative: "EncodedText | None" = None

    def __getitem__(self, rows: torch.Tensor | slice) -> "EncodedText":
        pooled = None if self.pooled_BP is None else self.pooled_BP[rows]
        lengths = self.lengths and tuple(self.lengths[i] for i in torch.arange(len(self.lengths))[rows].tolist())
        return EncodedText(self.columns_BLE[rows], pooled, lengths, masked=self.masked, negative=self.negative)

    def repeated(self, batch: int) -> "EncodedText":
        """One prompt, as often as a batch has samples."""
        pooled = None if self.pooled_BP is None else self.pooled_BP.expand(batch, -1)
        return EncodedText(self.columns_BLE.expand(batch, -1, -1), pooled, self.lengths and self.lengths * batch)

    def mask_BL(self) -> torch.Tensor:
        """Which columns are no padding."""
        device = self.columns_BLE.device
        return torch.arange(self.columns_BLE.shape[1], device=device) < torch.tensor(self.lengths, device=device)[:, None]


def joined(parts: Sequence[EncodedText]) -> EncodedText:
    """Prompts encoded in parts, their columns padded to the longest."""
    longest = max(part.columns_BLE.shape[1] for part in parts)
    columns_BLE = torch.cat([F.pad(part.columns_BLE, (0, 0, 0, longest - part.columns_BLE.shape[1])) for part in parts])
    pooled_BP = None if parts[0].pooled_BP is None else torch.cat([part.pooled_BP for part in parts])
    lengths = None if parts[0].lengths is None else tuple(length for part in parts for length in part.lengths)
    return EncodedText(columns_BLE, pooled_BP, lengths)


def pack(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents as tokens of 2 x 2, [B, N, 4 C], row by row, channel by channel inside a token."""
    squares = x_BCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C h 2 w 2
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens_BNE: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Latents [B, C, H, W] of an h x w grid of tokens."""
    squares = tokens_BNE.unflatten(1, (h, w)).unflatten(3, (-1, 2, 2))  # B h w C 2 2
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def chat_frame(tokenizer: PreTrainedTokenizerFast, thinking: bool) -> tuple[str, str]:
    """What a chat template puts before and after a prompt, found by rendering it."""
    asked = [{"role": "user", "content": _HERE}]
    rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    before, after = rendered.split(_HERE)
    return before, after


class Family(ABC):
    """A pipeline prepared as frozen base: on its device, in its precision, its attention ready to be recorded.

    Raises InputError when the device is missing, and for a resolution or guidance that the base does not have.
    """

    lora_targets: tuple[str, ...]
    negative_prompt = ""
    joint: type[JointAttention]

    def __init__(self, pipe: DiffusionPipeline, settings: Settings, compute: Compute | None = None) -> None:
        compute = compute or Compute()
        self.pipe, self.settings, self.compiled = pipe, settings, compute.compile
        self.device, self.dtype = pick_device(settings.device), pick_precision(settings)
        torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
        self.transformer = pipe.transformer.requires_grad_(False).to(starts_on(self.device, compute)).eval()
        self.blocks = self.joint_blocks()
        self.passes = 2 if settings.guidance > 1 else 1
        self.geometry = self.geometry_of(settings.size)
        self._negative: EncodedText | None = None

        # What saves memory, and what saves time.
        vae = pipe.vae.requires_grad_(False).to(self.device).eval()
        if compute.vae_slicing:
            vae.enable_slicing()
        if compute.vae_tiling:
            vae.enable_tiling()
        if compute.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self._tap = Tap()
        self.watch(())
        if compute.compile:
            for block in self.blocks:
                block.compile()

    # -- blocks, size and noise levels ------------------------------------------------------------------------------

    def joint_blocks(self) -> list[nn.Module]:
        """The blocks whose attention sees image and text."""
        return list(self.transformer.transformer_blocks)

    def attention_of(self, block: nn.Module) -> nn.Module:
        """The joint attention of a block."""
        return block.attn

    def joint_of(self, block: nn.Module) -> type[JointAttention]:
        """The class of a block's attention."""
        return self.joint

    def watch(self, blocks: Sequence[int], heads: Sequence[int] | None = None) -> None:
        """Choose the blocks that can be recorded. Raises InputError when a block or head does not exist."""
        chosen = tuple(blocks)
        counts = len(self.blocks), self.attention_of(self.blocks[0]).heads
        try:
            check_recordable(chosen, None if heads is None else tuple(heads), counts)
        except ValueError as error:
            raise InputError(str(error)) from None
        for i, block in enumerate(self.blocks):
            joint = self.joint_of(block)
            self.attention_of(block).set_processor(watched(joint)((i, self._tap)) if i in chosen else joint())

    def geometry_of(self, size: tuple[int, int]) -> Geometry:
        """The geometry of pictures of `size` (height, width): tokens of 2 x 2 latents, packed into the channels."""
        return Geometry(self.transformer.config.in_channels // 4, *whole_tokens(size, self.pipe.vae_scale_factor, 2), 2)

    def sigmas(self, steps: int) -> torch.Tensor:
        """The noise levels of `steps` steps and the final 0, float32 [steps + 1], as the pipelines make them."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=self.shift(steps))
        return scheduler.sigmas.float()

    def shift(self, steps: int) -> float:
        """mu, the shift of the noise levels, which a scheduler of a fixed one passes over."""
        return token_shift(self.pipe.scheduler.config, self.geometry)

    # -- prompts ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encode prompts; the text encoders visit the device only meanwhile."""
        encoders = self.text_encoders()
        for encoder in encoders:
            encoder.to(self.device)
        if self.passes == 2 and self._negative is None:
            self._negative = self.encode_some([self.negative_prompt])
        starts = range(0, len(prompts), _ENCODED_AT_ONCE)
        text = joined([self.encode_some(list(prompts[s : s + _ENCODED_AT_ONCE])) for s in starts])
        masked = len({self.columns_run(length) for length in text.lengths or ()}) > 1
        text = replace(text, masked=masked, negative=self._negative)
        if self.device.type != "cpu":
            for encoder in encoders:
                encoder.to("cpu")
            torch.cuda.empty_cache()  # a scorer on the same GPU cannot use what this process keeps
        return text

    @abstractmethod
    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass, without the negative one."""

    def columns_run(self, length: int) -> int:
        """The columns that a prompt of `length` has in a pass; a pass of unlike numbers is masked."""
        return length

    def text_blocks(self) -> list[TextBlock]:
        """The blocks of the text columns, in the columns' order."""
        return self.blocks_of(self.pipe, self.settings)

    @staticmethod
    @abstractmethod
    def blocks_of(pipe: DiffusionPipeline, settings: Settings) -> list[TextBlock]:
        """The blocks of a pipeline's text columns; it need not have more than tokenizers."""

    @abstractmethod
    def example_text(self, batch: int) -> EncodedText:
        """Text of the true shapes whose content does not matter."""

    def text_encoders(self) -> list[nn.Module]:
        """The encoders that this pipeline has."""
        parts = (getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
        return [encoder for encoder in parts if encoder is not None]

    # -- the velocity -----------------------------------------------------------------------------------------------

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText, recorder: Recorder | None = None
    ) -> torch.Tensor:
        """The velocity at noise level sigma, float32 [B, C, H, W], guided where policy.guidance is above 1."""
        with torch.autocast(x_BCHW.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            with self._tap.open(recorder, *self.row(x_BCHW, text)):
                conditional = self.predict(x_BCHW, sigma, text)
            if text.negative is None:
                return conditional
            unconditional = self.predict(x_BCHW, sigma, text.negative.repeated(len(x_BCHW)))
        return self.guided(conditional, unconditional)

    @abstractmethod
    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity of one branch, float32 [B, C, H, W]."""

    def row(self, x_BCHW: torch.Tensor, text: EncodedText) -> tuple[slice, slice]:
        """Where image and text stand in the joint row; most have the text first."""
        columns, images = text.columns_BLE.shape[1], x_BCHW[0, 0].numel() // self.geometry.patch**2
        return slice(columns, columns + images), slice(0, columns)

    def guided(self, conditional_BCHW: torch.Tensor, unconditional_BCHW: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance."""
        return unconditional_BCHW + self.settings.guidance * (conditional_BCHW - unconditional_BCHW)

    # -- pictures and adapters --------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, x_BCHW: torch.Tensor) -> list[np.ndarray]:
        """Pictures of clean latents: a list of uint8 arrays [height, width, 3]."""
        pixels = self.pixels(x_BCHW).float()
        rounded = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(rounded.permute(0, 2, 3, 1).cpu().numpy())

    def pixels(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of latents, -1 to 1, [B, 3, height, width]."""
        vae = self.pipe.vae
        z = x_BCHW / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return vae.decode(z.to(vae.dtype)).sample

    def decoder(self) -> nn.Module:
        """The autoencoder."""
        return self.pipe.vae

    def save_lora(self, folder: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
        """Write an adapter for `load_lora_weights`."""
        type(self.pipe).save_lora_weights(folder, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=metadata)

    def read_lora(self, folder: Path) -> tuple[dict[str, torch.Tensor], dict | None]:
        """An adapter's weights and metadata under peft's names. Raises InputError when some are not the transformer's."""
        loader, prefix = type(self.pipe), f"{self.pipe.transformer_name}."
        tensors, metadata = loader.lora_state_dict(str(folder), weight_name=ADAPTER_FILE, return_lora_metadata=True)
        if foreign := [name for name in tensors if not name.startswith(prefix)]:
            file = folder / ADAPTER_FILE
            raise InputError(f"{file}: weights {foreign[:2]} are not of the transformer; only its adapters can be tested here")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return tensors, metadata and {name.removeprefix(prefix): value for name, value in metadata.items()}
