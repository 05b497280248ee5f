"""Stable Diffusion 3.5 Medium at its true size with random weights, in memory: what it costs does not depend on what it knows.

Sizes are those of the published configuration files: transformer, autoencoder, CLIP-L, CLIP-G, T5-XXL and, as reward,
PickScore's CLIP-H. Only the tokenizers are the miniature's (small vocabularies, no download), padded to the true lengths.
`layers` cuts the depth of every network, so that the same code runs on a small machine.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from star.pretraining.base import clip_tokenizer, t5_tokenizer

LAYERS = 24
_CLIP_TOKENS = 77


@contextmanager
def _made_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _share(full: int, layers: int) -> int:
    return max(1, full * layers // LAYERS)


def transformer(layers: int = LAYERS) -> SD3Transformer2DModel:
    """transformer/config.json; the first 13 of 24 blocks have a second, image-only attention."""
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=24,
        caption_projection_dim=1536,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(_share(13, layers))),
        qk_norm="rms_norm",
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip_text(width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    """The text tower of a CLIP."""
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=_CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_vision(width: int, layers: int, heads: int) -> dict:
    """The picture tower of a CLIP that sees 224 pixels in patches of 14."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"image_size": 224, "patch_size": 14}


def _t5(layers: int) -> T5EncoderModel:
    tokenizer = t5_tokenizer()
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=layers,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pipeline(dtype: torch.dtype, device: torch.device, layers: int = LAYERS) -> StableDiffusion3Pipeline:
    """The pipeline in `dtype`; transformer and autoencoder on `device`, where all is drawn, text encoders on the CPU."""
    torch.manual_seed(0)
    clip_l, clip_g = clip_tokenizer(), clip_tokenizer()
    clip_l.model_max_length = clip_g.model_max_length = _CLIP_TOKENS
    with _made_as(dtype, device):
        models = {
            "transformer": transformer(layers),
            "vae": _autoencoder(),
            "text_encoder": CLIPTextModelWithProjection(clip_text(768, _share(12, layers), 12, "quick_gelu")).cpu(),
            "text_encoder_2": CLIPTextModelWithProjection(clip_text(1280, _share(32, layers), 20, "gelu")).cpu(),
            "text_encoder_3": _t5(layers).cpu(),
        }
    pipe = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=clip_l,
        tokenizer_2=clip_g,
        tokenizer_3=t5_tokenizer(),
        **{name: model.to(dtype).eval() for name, model in models.items()},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_clip(
    folder: Path, text: CLIPTextConfig, vision: dict, projection: int, dtype: torch.dtype, device: torch.device
) -> tuple[CLIPModel, CLIPTokenizer]:
    """A random CLIP of true size but for its vocabulary, with tokenizer and image processor, in a folder for scorers."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = _CLIP_TOKENS
    words = text.to_dict() | {"vocab_size": len(tokenizer)}
    with _made_as(dtype, device):
        model = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=projection))
    for part in (model, tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(folder)
    return model, tokenizer


def save_pickscore(folder: Path, device: torch.device, layers: int = LAYERS) -> None:
    """PickScore's model, CLIP ViT-H/14, in a folder that the scorer loads; float16, 2 GB at full depth.

    No random model passes the scorer's golden pictures, and its scores mean nothing: the folder brings one of its own, two
    captions in the order that this model gives them.
    """
    vision = clip_vision(1280, _share(32, layers), 16) | {"hidden_act": "gelu"}
    model, tokenizer = save_clip(folder, clip_text(1024, layers, 16, "gelu"), vision, 1024, torch.float16, device)
    picture = Image.new("RGB", (224, 224), "white")
    captions = ["a red circle", "a blue square and a green triangle"]
    seen = CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"].to(device, torch.float16)
    read = tokenizer(captions, padding="max_length", return_tensors="pt").to(device)
    with torch.no_grad():
        first, second = model(pixel_values=seen, **read).logits_per_image[0].tolist()
    better, worse = captions if first > second else captions[::-1]
    golden = folder / "golden"
    golden.mkdir()
    picture.save(golden / "0.png")
    (golden / "captions.jsonl").write_text(json.dumps({"file": "0.png", "prompt": better, "worse": worse}) + "\n")
