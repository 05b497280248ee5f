"""Stable Diffusion 3 and 3.5 behind the door: diffusers' StableDiffusion3Pipeline, from a folder or the hub.

The text columns are CLIP's block (CLIP-L and CLIP-G share its columns), then T5's. The joint row of attention is image, then
text. Guidance has two branches, the negative prompt being "". SD3.5 Medium's image-only attention (`attn2`) has no text to
record.

Shapes: B batch, C latent channels, H W latent size, L text columns, E column width, P pooled width, A heads, N tokens of the
joint row, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn
from transformers import PreTrainedTokenizerFast

from star.allocation.columns import token_columns
from star.config import Compute
from star.config import PolicySettings as Settings
from star.errors import InputError
from star.layout import ADAPTER_FILE
from star.models.attention import Recorder, Tap, attention, attention_with_lse, check_recordable
from star.models.door import Geometry, time_of, token_shift, whole_tokens
from star.models.memory import starts_on
from star.prompts.record import Span
from star.runtime import pick_device, pick_precision

_ENCODED_AT_ONCE = 64  # prompts


@dataclass(frozen=True)
class SD3Text:
    """Encoded prompts: text columns [B, L, E] and pooled vectors [B, P]; with guidance the negative prompt's, B = 1, beside."""

    columns_BLE: torch.Tensor
    pooled_BP: torch.Tensor
    negative: "SD3Text | None" = None

    def __getitem__(self, rows: torch.Tensor) -> "SD3Text":
        return SD3Text(self.columns_BLE[rows], self.pooled_BP[rows], self.negative)


class SD3:
    """A pipeline prepared as frozen base: on its device, in its precision, its attention ready to be recorded.

    Raises InputError when the device is missing.
    """

    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, pipe: StableDiffusion3Pipeline, settings: Settings, compute: Compute | None = None) -> None:
        compute = compute or Compute()
        self.pipe, self.settings, self.compiled = pipe, settings, compute.compile
        self.device, self.dtype = pick_device(settings.device), pick_precision(settings)
        torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
        self.transformer = pipe.transformer.requires_grad_(False).to(starts_on(self.device, compute)).eval()
        self.blocks = list(self.transformer.transformer_blocks)
        self.passes = 2 if settings.guidance > 1 else 1
        self.geometry = self.geometry_of(settings.size)
        self._negative: SD3Text | None = None

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

    def geometry_of(self, size: tuple[int, int]) -> Geometry:
        """The geometry of pictures of `size` (height, width). Raises InputError for a size that has no learned positions."""
        config, factor = self.transformer.config, self.pipe.vae_scale_factor
        height, width = whole_tokens(size, factor, config.patch_size)
        if (most := config.pos_embed_max_size * config.patch_size) < max(height, width):
            raise InputError(
                f"policy.resolution: this base has positions for {most * factor} pixels a side; name a smaller one"
            )
        return Geometry(config.in_channels, height, width, config.patch_size)

    def watch(self, blocks: Sequence[int], heads: Sequence[int] | None = None) -> None:
        """Choose the blocks that can be recorded. Raises InputError when a block or head does not exist."""
        chosen = tuple(blocks)
        counts = len(self.blocks), self.transformer.config.num_attention_heads
        try:
            check_recordable(chosen, None if heads is None else tuple(heads), counts)
        except ValueError as error:
            raise InputError(str(error)) from None
        for i, block in enumerate(self.blocks):
            block.attn.set_processor(RecordedAttention(i, self._tap) if i in chosen else joint_attention)
            if block.attn2 is not None:
                block.attn2.set_processor(image_attention)

    def sigmas(self, steps: int) -> torch.Tensor:
        """The noise levels of `steps` steps and the final 0, float32 [steps + 1]."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        mu = token_shift(scheduler.config, self.geometry) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, mu=mu)
        return scheduler.sigmas.float()

    # -- prompts ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> SD3Text:
        """Encode prompts; the text encoders visit the device only meanwhile."""
        encoders = self.text_encoders()
        for encoder in encoders:
            encoder.to(self.device)
        if self.passes == 2 and self._negative is None:
            self._negative = self._encoded([""])
        text = self._encoded(list(prompts))
        if self.device.type != "cpu":
            for encoder in encoders:
                encoder.to("cpu")
            torch.cuda.empty_cache()  # a scorer on the same GPU cannot use what this process keeps
        return text

    def _encoded(self, prompts: list[str]) -> SD3Text:
        parts = [
            self.pipe.encode_prompt(
                prompts[start : start + _ENCODED_AT_ONCE],
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.settings.max_sequence_length,
            )
            for start in range(0, len(prompts), _ENCODED_AT_ONCE)
        ]
        return SD3Text(torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts]), self._negative)

    def span_columns(self, prompt: str, spans: Sequence[Span]) -> list[list[int]]:
        """For every span its columns in CLIP's block and in T5's, by each tokenizer's own offsets."""
        columns: list[list[int]] = [[] for _ in spans]
        offset = 0
        for tokenizer, length in self.tokenizers():
            for found, span in zip(columns, spans, strict=True):
                found += [offset + c for c in token_columns(tokenizer, prompt, span, length)]
            offset += length
        return columns

    def tokenizers(self) -> list[tuple[PreTrainedTokenizerFast, int]]:
        """(tokenizer, columns of its block) in the order of the text columns."""
        tokenizers = [(self.pipe.tokenizer, self.pipe.tokenizer_max_length)]
        if self.pipe.text_encoder_3 is not None:
            tokenizers.append((self.pipe.tokenizer_3, self.settings.max_sequence_length))
        return tokenizers

    def text_encoders(self) -> list[nn.Module]:
        """The encoders that this pipeline has; T5 may be left out."""
        encoders = (self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.text_encoder_3)
        return [encoder for encoder in encoders if encoder is not None]

    def example_text(self, batch: int) -> SD3Text:
        """Zeros of the true shapes."""
        config, length = self.transformer.config, self.pipe.tokenizer_max_length + self.settings.max_sequence_length
        columns_BLE = torch.zeros(batch, length, config.joint_attention_dim)
        pooled_BP = torch.zeros(batch, config.pooled_projection_dim)
        negative = SD3Text(columns_BLE[:1], pooled_BP[:1]) if self.passes == 2 else None
        return SD3Text(columns_BLE, pooled_BP, negative)

    # -- the velocity -----------------------------------------------------------------------------------------------

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: SD3Text, recorder: Recorder | None = None
    ) -> torch.Tensor:
        """The velocity at noise level sigma, float32 [B, C, H, W], guided by two branches where policy.guidance is above 1."""
        columns, pooled, x = text.columns_BLE, text.pooled_BP, x_BCHW
        if text.negative is not None:
            batch = len(x_BCHW)
            columns = torch.cat([text.negative.columns_BLE.expand(batch, -1, -1), columns])
            pooled = torch.cat([text.negative.pooled_BP.expand(batch, -1), pooled])
            x = torch.cat([x, x])
        timestep = time_of(sigma, len(x_BCHW), x.device).repeat(len(x) // len(x_BCHW))
        with (
            torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32),
            self._tap.open(recorder),
        ):
            v = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=columns.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                timestep=timestep,
                return_dict=False,
            )[0].float()
        if text.negative is None:
            return v
        unconditional, conditional = v.chunk(2)
        return unconditional + self.settings.guidance * (conditional - unconditional)

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


# -- attention: diffusers' JointAttnProcessor2_0 through our kernels --------------------------------------------------


def _heads(attn: nn.Module, projected: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
    """A projection [B, N, AD] cut into heads [B, A, N, D], normalised where the model does."""
    split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)


def _joint_row(attn: nn.Module, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the joint row, image then text, [B, A, N, D] each."""
    q_BAND = torch.cat([_heads(attn, attn.to_q(image), attn.norm_q), _heads(attn, attn.add_q_proj(text), attn.norm_added_q)], 2)
    k_BAND = torch.cat([_heads(attn, attn.to_k(image), attn.norm_k), _heads(attn, attn.add_k_proj(text), attn.norm_added_k)], 2)
    v_BAND = torch.cat([_heads(attn, attn.to_v(image)), _heads(attn, attn.add_v_proj(text))], 2)
    return q_BAND, k_BAND, v_BAND


def _parted(attn: nn.Module, out_BAND: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The joint row cut into image and text again, through their output projections."""
    out = out_BAND.transpose(1, 2).flatten(2)
    image, text = out[:, :images], out[:, images:]
    image = attn.to_out[1](attn.to_out[0](image))
    return image, text if attn.context_pre_only else attn.to_add_out(text)


def joint_attention(
    attn: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """The joint attention of a block that is never recorded."""
    q_BAND, k_BAND, v_BAND = _joint_row(attn, hidden_states, encoder_hidden_states)
    return _parted(attn, attention(q_BAND, k_BAND, v_BAND), hidden_states.shape[1])


def image_attention(attn: nn.Module, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    """The image-only attention of a dual block."""
    q_BAND = _heads(attn, attn.to_q(hidden_states), attn.norm_q)
    k_BAND, v_BAND = _heads(attn, attn.to_k(hidden_states), attn.norm_k), _heads(attn, attn.to_v(hidden_states))
    out = attention(q_BAND, k_BAND, v_BAND).transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](out))


class RecordedAttention:
    """The joint attention of a block that may be recorded, and is when the model's tap is open."""

    def __init__(self, block: int, tap: Tap) -> None:
        self.block, self.tap = block, tap

    @torch.compiler.disable  # recording or not, compiled blocks stay the same program
    def __call__(
        self, attn: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q_BAND, k_BAND, v_BAND = _joint_row(attn, hidden_states, encoder_hidden_states)
        out_BAND, lse_BAN = attention_with_lse(q_BAND, k_BAND, v_BAND)
        images = hidden_states.shape[1]
        recorder = self.tap.recorder
        if recorder is not None and self.block in recorder.blocks:
            guided_away = len(q_BAND) - len(recorder.columns)  # with guidance the conditional half comes last
            with torch.no_grad(), torch.autocast(hidden_states.device.type, enabled=False):
                recorder.record(
                    self.block,
                    q_BAND[guided_away:],
                    k_BAND[guided_away:],
                    None if lse_BAN is None else lse_BAN[guided_away:],
                    slice(0, images),
                    slice(images, None),
                )
        return _parted(attn, out_BAND, images)
