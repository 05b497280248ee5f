"""FLUX.1 behind the door: diffusers' FluxPipeline.

The text columns are T5's, padded to their number and attended without a mask, so padding takes its share of every row; CLIP
gives one pooled vector and no column. The joint row is text, then image, in the double blocks and in the single ones. The
guidance-distilled models (FLUX.1-dev) are told the scale and cost one pass; the others (FLUX.1-schnell) have no guidance.

Shapes: B batch, C latent channels, H W latent size, L text columns, A heads, N tokens of the joint row, D head width.
"""

import torch
from diffusers import FluxPipeline
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from star.allocation.columns import TextBlock
from star.config import Compute
from star.config import PolicySettings as Settings
from star.errors import InputError
from star.models.attention import JointAttention, projected
from star.models.door import time_of
from star.models.family import EncodedText, Family, pack, unpack


class FluxAttention(JointAttention):
    """diffusers' FluxAttnProcessor through our kernels: of a double block, or of a single one, whose row comes joined."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        row = projected(attn, hidden_states)
        if encoder_hidden_states is not None:
            streams = projected(attn, encoder_hidden_states, text=True), row
            row = (torch.cat(parts, 2) for parts in zip(*streams, strict=True))
        q_BAND, k_BAND, v_BAND = row
        q_BAND, k_BAND = (apply_rotary_emb(x_BAND, image_rotary_emb) for x_BAND in (q_BAND, k_BAND))
        out = self.attend(q_BAND, k_BAND, v_BAND)
        if encoder_hidden_states is None:
            return out
        columns = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, columns:])), attn.to_add_out(out[:, :columns])


class Flux(Family):
    """FLUX.1. Raises InputError for a guidance other than 1 where the model is told none."""

    lora_targets = (  # of Flow-GRPO and Flow-Factory; the first three are also in the single blocks
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    joint = FluxAttention

    def __init__(self, pipe: FluxPipeline, settings: Settings, compute: Compute | None = None) -> None:
        super().__init__(pipe, settings, compute)
        self.passes = 1
        if settings.guidance != 1 and not self.transformer.config.guidance_embeds:
            raise InputError(f"policy.guidance: {settings.model} has no guidance; give 1")

    def joint_blocks(self) -> list[nn.Module]:
        """Double blocks, then single ones."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass."""
        columns_BLE, pooled_BP, _ = self.pipe.encode_prompt(
            prompts, prompt_2=None, device=self.device, max_sequence_length=self.settings.max_sequence_length
        )
        return EncodedText(columns_BLE, pooled_BP)

    @staticmethod
    def blocks_of(pipe: FluxPipeline, settings: Settings) -> list[TextBlock]:
        """T5's block."""
        return [TextBlock("t5", pipe.tokenizer_2, settings.max_sequence_length)]

    def example_text(self, batch: int) -> EncodedText:
        """Zeros of the true shapes."""
        config = self.transformer.config
        columns_BLE = torch.zeros(batch, self.settings.max_sequence_length, config.joint_attention_dim)
        return EncodedText(columns_BLE, torch.zeros(batch, config.pooled_projection_dim))

    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity, float32 [B, C, H, W], at the guidance that the model is told."""
        batch, device = len(x_BCHW), x_BCHW.device
        h, w = (side // 2 for side in x_BCHW.shape[-2:])
        guidance = torch.full((batch,), self.settings.guidance, device=device)
        v_BNE = self.transformer(
            hidden_states=pack(x_BCHW).to(self.dtype),
            encoder_hidden_states=text.columns_BLE.to(self.dtype),
            pooled_projections=text.pooled_BP.to(self.dtype),
            timestep=time_of(sigma, batch, device, 1.0),
            img_ids=self.pipe._prepare_latent_image_ids(batch, h, w, device, torch.float32),
            txt_ids=torch.zeros(text.columns_BLE.shape[1], 3, device=device),
            guidance=guidance if self.transformer.config.guidance_embeds else None,
            return_dict=False,
        )[0]
        return unpack(v_BNE.float(), h, w)
