"""PickScore (arXiv 2305.01569): a CLIP model's score of a picture for its prompt.

score = exp(logit_scale) * cosine(text, image). The reported score is raw; the training reward is raw / 26, about 1 for a good
picture under the real model. A folder with the same classes serves as well: the miniature's own model is one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from star.errors import InputError

REWARD_DIVISOR = 26.0
_BATCH = 32


def _embedding(output: object) -> torch.Tensor:
    """The unit projections [B, D]; transformers before 5 returned them bare, since then in an output object."""
    return F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1)


def _load(cls: type, source: str, key: str) -> object:
    try:
        return cls.from_pretrained(source)
    except OSError as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(
            f"scorers.{key}: cannot load {source!r} as {cls.__name__}; give a folder that holds it, or a hub repository "
            f"and a network or cache that has it ({why})"
        ) from None


def _weights_hash(source: str, model: CLIPModel) -> str:
    """The first 12 hex digits of the weights' SHA-256, or of the hub commit."""
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        return str(getattr(model.config, "_commit_hash", None))[:12]
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


class PickScorer:
    """PickScore with the CLIP model `model`, and tokenizer and image processor of `processor`: folders or hub names."""

    def __init__(self, model: str, processor: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _load(CLIPModel, model, "pickscore_model").eval().to(self._device)
        self._tokenizer = _load(CLIPTokenizer, processor, "pickscore_processor")
        words, rows = len(self._tokenizer), self._model.config.text_config.vocab_size
        if words != rows:  # transformers makes an empty tokenizer of a folder without one
            raise InputError(
                f"scorers.pickscore_processor: {processor!r} has a tokenizer of {words} tokens, the model knows {rows}; "
                f"give the folder or hub repository with the model's own tokenizer"
            )
        self._images = _load(CLIPImageProcessorPil, processor, "pickscore_processor")
        digest = _weights_hash(model, self._model)
        self.fingerprint = (
            f"pickscore {model}@{digest} processor={processor} transformers-{transformers.__version__} "
            f"torch-{torch.__version__} {self._device}"
        )

    def check(self, records: Sequence[dict]) -> None:
        """Raise InputError when a prompt is empty."""
        for record in records:
            if not record["prompt"].strip():
                raise InputError(f"prompt {record.get('id', '')!r}: empty; pickscore needs words to compare the picture with")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[dict]) -> list[dict]:
        """Score uint8 [H, W, 3] pictures: raw score, and reward = raw / 26."""
        self.check(records)
        if not len(images):
            return []
        prompts = [record["prompt"] for record in records]
        unique = sorted(set(prompts))
        texts_UD = torch.cat([self._texts(unique[i : i + _BATCH]) for i in range(0, len(unique), _BATCH)])
        images_BD = torch.cat([self._pictures(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
        rows = [unique.index(prompt) for prompt in prompts]
        scores = self._model.logit_scale.exp().item() * (texts_UD[rows] * images_BD).sum(-1)
        return [{"score": s, "reward": s / REWARD_DIVISOR} for s in scores.tolist()]

    @torch.inference_mode()
    def _texts(self, prompts: list[str]) -> torch.Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return _embedding(self._model.get_text_features(**tokens.to(self._device)))

    @torch.inference_mode()
    def _pictures(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self._images(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return _embedding(self._model.get_image_features(pixel_values=pixels.to(self._device)))
