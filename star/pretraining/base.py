"""The miniature base, untrained: the true SD3 classes at toy size, put together as a diffusers pipeline.

The two CLIP tokenizers carry a byte-pair vocabulary whose merges spell the world's words; any other string falls to
characters, so a quoted word is read letter by letter. The T5 tokenizer does the same with a unigram vocabulary.
"""

import itertools
import string
from collections import Counter

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from star.prompts.core import plural
from star.worlds.miniature.captions import NUMBERS
from star.worlds.miniature.scenes import CARRIERS, COLORS, SHAPES

TEXT_LENGTH = 16  # columns of the CLIP block, and of the T5 block
WIDTH, HEADS, LAYERS, LATENT_CHANNELS = 128, 4, 4, 8
_TEXT_WIDTH = 64
WORDS = sorted(
    {"photo", "of", "and", "left", "right", "above", "below", "on", "dark", "light", "background"}
    | {"that", "says", "reads", *SHAPES, *map(plural, SHAPES), *COLORS, *CARRIERS, *NUMBERS[1:]}
)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first and ties by spelling, until every word is one token.

    The library's trainer breaks ties differently at every call, and weights are tied to the vocabulary they were trained on.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for tokens in spelled for pair in itertools.pairwise(tokens)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for tokens in spelled:
            for i in reversed(range(len(tokens) - 1)):
                if tuple(tokens[i : i + 2]) == best:
                    tokens[i : i + 2] = ["".join(best)]
    return merges


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the world's words and single characters, the same at every call."""
    characters = sorted(c for c in string.printable if not c.isspace() and not c.isupper())
    merges = _merges(WORDS)
    tokens = [*characters, *(c + "</w>" for c in characters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer of the world's words and single characters."""
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ('▁"', -1.0), ("▁a", -1.0)]
    pieces += [("▁" + word, -1.0) for word in WORDS] + [(c, -3.0) for c in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def _clip_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=2 * _TEXT_WIDTH,
            projection_dim=_TEXT_WIDTH,
            num_hidden_layers=2,  # the pipeline conditions on the last but one hidden state
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def autoencoder() -> AutoencoderKL:
    """An untrained autoencoder: 64 x 64 x 3 pixels to 16 x 16 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.0,
    )


def transformer() -> SD3Transformer2DModel:
    """An untrained SD3 transformer with joint blocks and the RMS-normalised queries and keys of SD3.5."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * _TEXT_WIDTH,
        pooled_projection_dim=2 * _TEXT_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def pipeline(seed: int) -> StableDiffusion3Pipeline:
    """The whole untrained pipeline, initialised from `seed`."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=2 * _TEXT_WIDTH,
        d_kv=32,
        d_ff=4 * _TEXT_WIDTH,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=t5.pad_token_id,
        eos_token_id=t5.eos_token_id,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder(),
        text_encoder=_clip_text_model(clip),
        tokenizer=clip,
        text_encoder_2=_clip_text_model(clip),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(t5_config),
        tokenizer_3=t5,
    )
