"""Tiny random pipelines of the true classes, one a family behind the door. A further family is one function and one line."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from star.models.family import pack
from star.pretraining import base


def autoencoder(**changes: object) -> AutoencoderKL:
    """64 x 64 pixels to 16 x 16 latents of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        **{"latent_channels": 4, "scaling_factor": 0.7, "shift_factor": 0.2, **changes},
    )


def t5(width: int) -> T5EncoderModel:
    """One layer over the words of the miniature's tokenizer."""
    vocabulary = len(base.t5_tokenizer())
    return T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def sd3(**changes: object) -> StableDiffusion3Pipeline:
    """SD3.5 Medium's shape: the first block has image-only attention beside the joint one."""
    parts = base.pipeline(seed=1).components
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=16,
        **{"qk_norm": "rms_norm", "dual_attention_layers": (0,), **changes},
    )
    kept = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(**{**kept, "transformer": transformer, "vae": autoencoder(), "scheduler": scheduler})


def sd35_large() -> StableDiffusion3Pipeline:
    """No block has image-only attention."""
    return sd3(dual_attention_layers=())


def flux(**changes: object) -> FluxPipeline:
    """FLUX.1-dev: told its guidance."""
    clip = base.pipeline(seed=1).text_encoder.config
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=clip.hidden_size,
        axes_dims_rope=(2, 2, 4),
        **{"guidance_embeds": True, **changes},
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.15, base_shift=0.5),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip),
        tokenizer=base.clip_tokenizer(),
        text_encoder_2=t5(16),
        tokenizer_2=base.t5_tokenizer(),
        transformer=transformer,
    )


TEMPLATE = (  # of Qwen3, for one message without tools
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one token."""
    spelled, found = [list(word) for word in words], []
    while pairs := Counter(pair for tokens in spelled for pair in itertools.pairwise(tokens)):
        found.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for tokens in spelled:
            for i in reversed(range(len(tokens) - 1)):
                if tuple(tokens[i : i + 2]) == found[-1]:
                    tokens[i : i + 2] = ["".join(found[-1])]
    return found


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte pairs that spell the words of the miniature and of Qwen-Image's template, which is 34 tokens as in the true one."""
    described = "the image by detailing color shape size texture quantity text spatial relationships of objects and background"
    words = [f"\u0120{word}" for word in {**dict.fromkeys(base.WORDS), **dict.fromkeys(described.split())}]
    pairs = merges([*words, "system", "user", "assistant", "Describe", "a"])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in pairs), *special]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=pairs, additional_special_tokens=special[1:])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


LANGUAGE = {  # a causal language model of two layers
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
}


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: a template before the prompt, some of which is dropped; two branches."""
    tokenizer = qwen_tokenizer()
    rope = {"type": "default", "mrope_section": [1, 1, 2]}
    text = LANGUAGE | {"vocab_size": len(tokenizer), "rope_scaling": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, base_shift=0.5, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.1, 0.9, 1.3, 0.8],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def z_image() -> ZImagePipeline:
    """Z-Image: refiners of image and of text alone, then joint layers."""
    tokenizer = qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=Qwen3Model(Qwen3Config(**LANGUAGE, vocab_size=len(tokenizer))),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[2, 2, 4],
            axes_lens=[512, 32, 32],
        ),
    )


def flux2_klein() -> Flux2KleinPipeline:
    """FLUX.2 klein: single blocks of one fused projection; three layers of the language model make a column."""
    tokenizer = qwen_tokenizer()
    language = LANGUAGE | {"num_hidden_layers": 28, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**language)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
    )


def flux2_output(pipe: Flux2KleinPipeline, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder takes them."""
    mean, std = pipe.vae.bn.running_mean, (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return pipe._unpatchify_latents(pipe._patchify_latents(x_BCHW) * std[:, None, None] + mean[:, None, None])


@dataclass(frozen=True)
class Tiny:
    """A family's pipeline, and how to compare: arguments of guidance, our latents as its call takes them, where its row has
    image and text (of so many image tokens and text columns), whether a token of its text sees only those before it, and our
    latents as its call returns them, where it does not return what it takes."""

    pipeline: Callable[[], DiffusionPipeline]
    call: Callable[[float], dict] = lambda guidance: {"guidance_scale": guidance}
    latents: Callable[[torch.Tensor], torch.Tensor] = pack
    row: Callable[[int, int], tuple[int, int]] = lambda images, columns: (columns, 0)
    causal: bool = False
    output: Callable[[DiffusionPipeline, torch.Tensor], torch.Tensor] | None = None


def as_they_are(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents of a pipeline that does not pack them."""
    return x_BCHW


FAMILIES = {
    "sd3": Tiny(sd3, latents=as_they_are, row=lambda images, columns: (0, images)),
    "sd35-large": Tiny(sd35_large, latents=as_they_are, row=lambda images, columns: (0, images)),
    "flux": Tiny(flux),
    "qwen-image": Tiny(qwen_image, lambda guidance: {"true_cfg_scale": guidance, "negative_prompt": " "}, causal=True),
    "z-image": Tiny(
        z_image,
        lambda guidance: {"guidance_scale": guidance - 1},
        latents=as_they_are,
        row=lambda images, columns: (0, images + -images % 32),
        causal=True,
    ),
    "flux2-klein": Tiny(flux2_klein, latents=Flux2KleinPipeline._patchify_latents, causal=True, output=flux2_output),
}


def make(name: str, folder: Path) -> Path:
    """Save a pipeline of random weights, none of them zero, into `folder`; returns it."""
    torch.manual_seed(1)
    pipe = FAMILIES[name].pipeline()
    for parameter in pipe.transformer.parameters():  # some start at zero, and would hide what stands before them
        torch.nn.init.normal_(parameter, std=0.15)
    for key, parameter in pipe.transformer.named_parameters():
        if "norm" in key and key.endswith("weight") and parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
    pipe.save_pretrained(folder)
    return folder
