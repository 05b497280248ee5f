"""Stable Diffusion 3 and 3.5 behind the door: diffusers' StableDiffusion3Pipeline, from a folder or the hub.

The text columns are CLIP's block (CLIP-L and CLIP-G share its columns), then T5's. The joint row of attention is image, then
text. Guidance has two branches, the negative prompt being "". SD3.5 Medium's image-only attention (`attn2`) has no text to
record.

Shapes: B batch, C latent channels, H W latent size, L text columns, E column width, A heads, N tokens of the joint row, D head
width.
"""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn

from star.allocation.columns import TextBlock
from star.config import PolicySettings as Settings
from star.errors import InputError
from star.models.attention import JointAttention, Recorder, attention, projected
from star.models.door import Geometry, time_of, token_shift, whole_tokens
from star.models.family import EncodedText, Family, joined


class SD3Attention(JointAttention):
    """diffusers' JointAttnProcessor2_0 through our kernels."""

    def __call__(
        self, attn: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        streams = projected(attn, hidden_states), projected(attn, encoder_hidden_states, text=True)
        out = self.attend(*(torch.cat(parts, 2) for parts in zip(*streams, strict=True)))
        image, text = out[:, : hidden_states.shape[1]], out[:, hidden_states.shape[1] :]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def image_attention(attn: nn.Module, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    """The image-only attention of a dual block."""
    out = attention(*projected(attn, hidden_states)).transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](out))


class SD3(Family):
    """Stable Diffusion 3 and 3.5, Medium and Large."""

    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    joint = SD3Attention

    def watch(self, blocks: Sequence[int], heads: Sequence[int] | None = None) -> None:
        """Choose the blocks that can be recorded. Raises InputError when a block or head does not exist."""
        super().watch(blocks, heads)
        for block in self.blocks:
            if block.attn2 is not None:
                block.attn2.set_processor(image_attention)

    def geometry_of(self, size: tuple[int, int]) -> Geometry:
        """The geometry of pictures of `size` (height, width). Raises InputError for a size that has no learned positions."""
        config, factor = self.transformer.config, self.pipe.vae_scale_factor
        height, width = whole_tokens(size, factor, config.patch_size)
        if (most := config.pos_embed_max_size * config.patch_size) < max(height, width):
            raise InputError(
                f"policy.resolution: this base has positions for {most * factor} pixels a side; name a smaller one"
            )
        return Geometry(config.in_channels, height, width, config.patch_size)

    def sigmas(self, steps: int) -> torch.Tensor:
        """The noise levels of `steps` steps and the final 0, float32 [steps + 1]."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        mu = token_shift(scheduler.config, self.geometry) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, mu=mu)
        return scheduler.sigmas.float()

    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass, without the negative one."""
        columns_BLE, _, pooled_BP, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return EncodedText(columns_BLE, pooled_BP)

    def text_blocks(self) -> list[TextBlock]:
        """CLIP's block, then T5's, which may be left out."""
        blocks = super().text_blocks()
        return blocks if self.pipe.text_encoder_3 is not None else blocks[:1]

    @staticmethod
    def blocks_of(pipe: StableDiffusion3Pipeline, settings: Settings) -> list[TextBlock]:
        """CLIP's block, and T5's of a pipeline with its tokenizer."""
        blocks = [TextBlock("clip", pipe.tokenizer, pipe.tokenizer_max_length)]
        if pipe.tokenizer_3 is not None:
            blocks.append(TextBlock("t5", pipe.tokenizer_3, settings.max_sequence_length))
        return blocks

    def example_text(self, batch: int) -> EncodedText:
        """Zeros of the true shapes."""
        config, length = self.transformer.config, self.pipe.tokenizer_max_length + self.settings.max_sequence_length
        columns_BLE = torch.zeros(batch, length, config.joint_attention_dim)
        pooled_BP = torch.zeros(batch, config.pooled_projection_dim)
        negative = EncodedText(columns_BLE[:1], pooled_BP[:1]) if self.passes == 2 else None
        return EncodedText(columns_BLE, pooled_BP, negative=negative)

    def row(self, x_BCHW: torch.Tensor, text: EncodedText) -> tuple[slice, slice]:
        """Image, then text."""
        images = x_BCHW[0, 0].numel() // self.geometry.patch**2
        return slice(0, images), slice(images, None)

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText, recorder: Recorder | None = None
    ) -> torch.Tensor:
        """The velocity at noise level sigma, float32 [B, C, H, W]; guidance's two branches in one pass, the recorded last."""
        autocast = torch.autocast(x_BCHW.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)
        with autocast, self._tap.open(recorder, *self.row(x_BCHW, text)):
            if text.negative is None:
                return self.predict(x_BCHW, sigma, text)
            both = joined([text.negative.repeated(len(x_BCHW)), text])
            levels = sigma if isinstance(sigma, float) else sigma.repeat(2)
            unconditional, conditional = self.predict(torch.cat([x_BCHW, x_BCHW]), levels, both).chunk(2)
        return self.guided(conditional, unconditional)

    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity of each sample under its own text, float32 [B, C, H, W]."""
        return self.transformer(
            hidden_states=x_BCHW.to(self.dtype),
            encoder_hidden_states=text.columns_BLE.to(self.dtype),
            pooled_projections=text.pooled_BP.to(self.dtype),
            timestep=time_of(sigma, len(x_BCHW), x_BCHW.device),
            return_dict=False,
        )[0].float()
