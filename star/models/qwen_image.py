"""Qwen-Image behind the door: diffusers' QwenImagePipeline.

The text columns are Qwen2.5-VL's last hidden states of a chat template, whose first tokens the pipeline drops; what the
template puts after the prompt has columns too, and is never core. Prompts of several lengths are padded and masked. The joint
row is text, then image. Guidance has two branches, the negative prompt being a space, and every token of their mix is scaled to
the length that the conditional branch gives it.

Shapes: B batch, C latent channels, H W latent size, L text columns, A heads, N tokens of the joint row, D head width, E width
of a token.
"""

import torch
from diffusers import QwenImagePipeline
from torch import nn

from star.allocation.columns import TextBlock
from star.config import PolicySettings as Settings
from star.models.attention import JointAttention, projected, rotated
from star.models.door import time_of
from star.models.family import EncodedText, Family, pack, unpack


class QwenAttention(JointAttention):
    """diffusers' QwenDoubleStreamAttnProcessor2_0 through our kernels."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        turned = []
        for stream, text in ((encoder_hidden_states, True), (hidden_states, False)):
            turn_1ND = image_rotary_emb[text][None]
            q_BAND, k_BAND, v_BAND = projected(attn, stream, text=text)
            turned.append((rotated(q_BAND, turn_1ND), rotated(k_BAND, turn_1ND), v_BAND))
        mask_BL = encoder_hidden_states_mask
        mask_BN = None if mask_BL is None else torch.cat([mask_BL, mask_BL.new_ones(hidden_states.shape[:2])], 1)
        out = self.attend(*(torch.cat(parts, 2) for parts in zip(*turned, strict=True)), mask_BN)
        columns = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, columns:])), attn.to_add_out(out[:, :columns])


class QwenImage(Family):
    """Qwen-Image."""

    lora_targets = (  # of Flow-GRPO
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )
    negative_prompt = " "
    joint = QwenAttention

    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass, without the negative one."""
        columns_BLE, mask_BL = self.pipe.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.settings.max_sequence_length
        )
        whole = [columns_BLE.shape[1]] * len(prompts)
        return EncodedText(columns_BLE, lengths=tuple(whole if mask_BL is None else mask_BL.sum(1).tolist()))

    @staticmethod
    def blocks_of(pipe: QwenImagePipeline, settings: Settings) -> list[TextBlock]:
        """The one block, framed by the pipeline's own template."""
        before, after = pipe.prompt_template_encode.split("{}")
        dropped, length = pipe.prompt_template_encode_start_idx, min(settings.max_sequence_length, pipe.tokenizer_max_length)
        return [TextBlock("qwen", pipe.tokenizer, length, frame=(before, after), dropped=dropped)]

    def example_text(self, batch: int) -> EncodedText:
        """Zeros of the true shapes, the longest prompts."""
        length = self.settings.max_sequence_length
        columns_BLE = torch.zeros(batch, length, self.transformer.config.joint_attention_dim)
        negative = EncodedText(columns_BLE[:1], lengths=(length,)) if self.passes == 2 else None
        return EncodedText(columns_BLE, lengths=(length,) * batch, masked=True, negative=negative)

    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity of one branch, float32 [B, C, H, W]."""
        batch, device = len(x_BCHW), x_BCHW.device
        h, w = (side // 2 for side in x_BCHW.shape[-2:])
        v_BNE = self.transformer(
            hidden_states=pack(x_BCHW).to(self.dtype),
            encoder_hidden_states=text.columns_BLE.to(self.dtype),
            encoder_hidden_states_mask=text.mask_BL() if text.masked else None,
            timestep=time_of(sigma, batch, device, 1.0),
            img_shapes=[[(1, h, w)]] * batch,
            return_dict=False,
        )[0]
        return unpack(v_BNE.float(), h, w)

    def guided(self, conditional_BCHW: torch.Tensor, unconditional_BCHW: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance whose tokens have the norm of the conditional branch's."""
        h, w = (side // 2 for side in conditional_BCHW.shape[-2:])
        conditional_BNE = pack(conditional_BCHW)
        mixed_BNE = pack(super().guided(conditional_BCHW, unconditional_BCHW))
        norms = (torch.linalg.vector_norm(tokens, dim=-1, keepdim=True) for tokens in (conditional_BNE, mixed_BNE))
        wanted_BN1, found_BN1 = norms
        return unpack(mixed_BNE * (wanted_BN1 / found_BN1), h, w)

    def pixels(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of latents as one frame, -1 to 1, [B, 3, height, width]."""
        vae = self.pipe.vae
        statistics = (vae.config.latents_mean, vae.config.latents_std)
        mean, std = (torch.tensor(values, device=x_BCHW.device)[:, None, None] for values in statistics)
        z = (x_BCHW * std + mean).unsqueeze(2)
        return vae.decode(z.to(vae.dtype)).sample[:, :, 0]
