"""FLUX.2 klein behind the door: diffusers' Flux2KleinPipeline.

The text columns are three layers of Qwen3 of a chat template, padded to their number and attended without a mask; the
template's are never core. The joint row is text, then image. Single blocks project queries, keys, values and their feed-forward
by one matrix. The shift of the noise levels depends on the number of steps. Guidance has two branches, the negative prompt
being ""; the step-distilled models have none.

Shapes: B batch, C latent channels, H W latent size, L text columns, A heads, N tokens of the joint row, D head width, E width
of a token.
"""

import math

import torch
from diffusers import Flux2KleinPipeline
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import nn

from star.allocation.columns import TextBlock
from star.config import Compute
from star.config import PolicySettings as Settings
from star.errors import InputError
from star.models.attention import JointAttention
from star.models.door import time_of
from star.models.family import EncodedText, Family, chat_frame, pack, unpack
from star.models.flux import FluxAttention


class FusedAttention(JointAttention):
    """diffusers' Flux2ParallelSelfAttnProcessor through our kernels: a single block's attention and feed-forward."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        fused = attn.to_qkv_mlp_proj(hidden_states)
        row, forward = fused.split([3 * attn.inner_dim, fused.shape[-1] - 3 * attn.inner_dim], -1)
        q_BAND, k_BAND, v_BAND = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in row.chunk(3, -1))
        q_BAND, k_BAND = attn.norm_q(q_BAND), attn.norm_k(k_BAND)
        q_BAND, k_BAND = (apply_rotary_emb(x_BAND, image_rotary_emb) for x_BAND in (q_BAND, k_BAND))
        out = self.attend(q_BAND, k_BAND, v_BAND)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(forward)], -1))


class Flux2Klein(Family):
    """FLUX.2 klein. Raises InputError for a guidance other than 1 where the model is step-distilled."""

    lora_targets = (  # the single blocks' output stays frozen: its name is also that of a list in the double ones
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_qkv_mlp_proj"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, pipe: Flux2KleinPipeline, settings: Settings, compute: Compute | None = None) -> None:
        super().__init__(pipe, settings, compute)
        if settings.guidance != 1 and pipe.config.is_distilled:
            raise InputError(f"policy.guidance: {settings.model} has no guidance; give 1")

    def joint_blocks(self) -> list[nn.Module]:
        """Double blocks, then single ones."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def joint_of(self, block: nn.Module) -> type[JointAttention]:
        """The class of a block's attention."""
        return FusedAttention if hasattr(block.attn, "to_qkv_mlp_proj") else FluxAttention

    def shift(self, steps: int) -> float:
        """mu, which falls with the number of steps."""
        return compute_empirical_mu(math.prod(self.geometry.tokens), steps)

    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass, without the negative one."""
        length = self.settings.max_sequence_length
        return EncodedText(self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=length)[0])

    @staticmethod
    def blocks_of(pipe: Flux2KleinPipeline, settings: Settings) -> list[TextBlock]:
        """The one block, framed as the tokenizer's template renders it."""
        frame = chat_frame(pipe.tokenizer, thinking=False)
        return [TextBlock("qwen", pipe.tokenizer, settings.max_sequence_length, frame=frame)]

    def example_text(self, batch: int) -> EncodedText:
        """Zeros of the true shapes."""
        columns_BLE = torch.zeros(batch, self.settings.max_sequence_length, self.transformer.config.joint_attention_dim)
        return EncodedText(columns_BLE, negative=EncodedText(columns_BLE[:1]) if self.passes == 2 else None)

    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity of one branch, float32 [B, C, H, W]."""
        device = x_BCHW.device
        h, w = (side // 2 for side in x_BCHW.shape[-2:])
        v_BNE = self.transformer(
            hidden_states=pack(x_BCHW).to(self.dtype),
            encoder_hidden_states=text.columns_BLE.to(self.dtype),
            timestep=time_of(sigma, len(x_BCHW), device, 1.0),
            img_ids=self.pipe._prepare_latent_ids(x_BCHW[:1, :, ::2, ::2])[0].to(device),
            txt_ids=self.pipe._prepare_text_ids(text.columns_BLE[:1])[0].to(device),
            return_dict=False,
        )[0]
        return unpack(v_BNE.float(), h, w)

    def pixels(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of latents, whose tokens it normalises by its own statistics."""
        vae = self.pipe.vae
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        tokens_BNE = pack(x_BCHW) * std.to(x_BCHW) + vae.bn.running_mean.to(x_BCHW)
        return vae.decode(unpack(tokens_BNE, *(side // 2 for side in x_BCHW.shape[-2:])).to(vae.dtype)).sample
