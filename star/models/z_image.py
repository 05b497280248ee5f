"""Z-Image behind the door: diffusers' ZImagePipeline.

The text columns are Qwen3's last but one hidden states of a chat template, all of whose tokens have columns; those of the
template are never core. Image and text are filled up to whole lines of 32 tokens, which attention sees, and the joint row is
image, then text. The transformer's time is 1 - sigma, and what it predicts is the velocity's opposite. Guidance has two
branches, the negative prompt being ""; the pipeline's own scale is ours less 1.

Shapes: B batch, C latent channels, H W latent size, L text columns, A heads, N tokens of the joint row, D head width, E column
width.
"""

from collections.abc import Sequence

import torch
from diffusers import ZImagePipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from star.allocation.columns import TextBlock
from star.config import PolicySettings as Settings
from star.models.attention import JointAttention, projected, rotated
from star.models.door import Geometry, time_of, whole_tokens
from star.models.family import EncodedText, Family, chat_frame


def in_lines(tokens: int) -> int:
    """A number of tokens filled up to whole lines."""
    return tokens + -tokens % SEQ_MULTI_OF


class ZImageAttention(JointAttention):
    """diffusers' ZSingleStreamAttnProcessor through our kernels."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        q_BAND, k_BAND, v_BAND = projected(attn, hidden_states)
        out = self.attend(rotated(q_BAND, freqs_cis), rotated(k_BAND, freqs_cis), v_BAND, attention_mask)
        return attn.to_out[1](attn.to_out[0](out))


class ZImage(Family):
    """Z-Image."""

    lora_targets = (  # of UniRL and Flow-Factory
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )
    joint = ZImageAttention

    def joint_blocks(self) -> list[nn.Module]:
        """Those after the refiners, which see image or text alone."""
        return list(self.transformer.layers)

    def attention_of(self, block: nn.Module) -> nn.Module:
        """The attention of a block."""
        return block.attention

    def watch(self, blocks: Sequence[int], heads: Sequence[int] | None = None) -> None:
        """Choose the blocks that can be recorded. Raises InputError when a block or head does not exist."""
        super().watch(blocks, heads)
        for block in (*self.transformer.noise_refiner, *self.transformer.context_refiner):
            block.attention.set_processor(self.joint())

    def geometry_of(self, size: tuple[int, int]) -> Geometry:
        """The geometry of pictures of `size` (height, width)."""
        patch = self.transformer.config.all_patch_size[0]
        return Geometry(self.transformer.config.in_channels, *whole_tokens(size, self.pipe.vae_scale_factor, patch), patch)

    def encode_some(self, prompts: list[str]) -> EncodedText:
        """Encode few enough prompts for one pass, without the negative one."""
        columns, _ = self.pipe.encode_prompt(
            list(prompts),  # the pipeline writes into it
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return EncodedText(pad_sequence(columns, batch_first=True), lengths=tuple(map(len, columns)))

    def columns_run(self, length: int) -> int:
        """The columns that a prompt has in a pass."""
        return in_lines(length)

    @staticmethod
    def blocks_of(pipe: ZImagePipeline, settings: Settings) -> list[TextBlock]:
        """The one block, framed as the tokenizer's template renders it."""
        frame = chat_frame(pipe.tokenizer, thinking=True)
        return [TextBlock("qwen", pipe.tokenizer, settings.max_sequence_length, frame=frame)]

    def example_text(self, batch: int) -> EncodedText:
        """Zeros of the true shapes, the longest prompts."""
        length = self.settings.max_sequence_length
        columns_BLE = torch.zeros(batch, length, self.transformer.config.cap_feat_dim)
        negative = EncodedText(columns_BLE[:1], lengths=(length,)) if self.passes == 2 else None
        return EncodedText(columns_BLE, lengths=(length,) * batch, negative=negative)

    def predict(self, x_BCHW: torch.Tensor, sigma: float | torch.Tensor, text: EncodedText) -> torch.Tensor:
        """The velocity of one branch, float32 [B, C, H, W]."""
        time_B = time_of(1.0 - sigma, len(x_BCHW), x_BCHW.device, 1.0)
        columns_BLE = text.columns_BLE.to(self.dtype)
        columns = [columns_LE[:length] for columns_LE, length in zip(columns_BLE, text.lengths, strict=True)]
        images = list(x_BCHW.to(self.dtype).unsqueeze(2))
        if text.masked:
            # The transformer pads to the longest text of the pass. One sample that has the longest of all goes before the
            # others and is forgotten, so that rollout and update run one program whatever prompts they take together.
            columns, images = [columns_BLE[0], *columns], [images[0], *images]
            time_B = torch.cat([time_B[:1], time_B])
        out = self.transformer(images, time_B, columns, return_dict=False)[0]
        return -torch.stack(out[-len(x_BCHW) :]).squeeze(2).float()

    def row(self, x_BCHW: torch.Tensor, text: EncodedText) -> tuple[slice, slice]:
        """Image and what fills its last line, then text."""
        images = x_BCHW[0, 0].numel() // self.geometry.patch**2
        return slice(0, images), slice(in_lines(images), None)
