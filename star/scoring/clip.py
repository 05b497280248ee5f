"""A CLIP model (arXiv 2103.00020) that compares pictures with texts: what pickscore, clipscore and hpsv2 have in common.

Shape suffixes: B pictures or texts, U unique texts, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import CLIPImageProcessorPil, CLIPModel

from star.errors import ScorerFailed
from star.hub import lock
from star.hub.check import Source, is_repository
from star.hub.weights import PRECISIONS, digest, load, load_model, load_tokenizer, resolve

_BATCH = 32


class Clip:
    """The model of `model` in `precision` on `device`, with tokenizer and image processor of `processor`.

    `scale` is exp(logit_scale). Cosines are float32. Raises InputError when one of them cannot be loaded, or when tokenizer
    and model do not belong together.
    """

    def __init__(self, model: Source, processor: Source, *, device: str, precision: str) -> None:
        self._device, self._dtype = resolve(device), PRECISIONS[precision]
        self._model = load_model(CLIPModel, model)
        weights = digest(self._model)
        self.scale = self._model.logit_scale.detach().exp().item()  # before rounding: in bfloat16 it is off by a percent
        self._tokenizer = load_tokenizer(transformers.CLIPTokenizer, processor, self._model)
        self._images = load(CLIPImageProcessorPil, processor)
        self._model.to(self._device, self._dtype)
        pinned = f"@{lock.commit(processor.name, processor.revision)[:12]}" if is_repository(processor.name) else ""
        self.fingerprint = (
            f"{model.name}@{weights} processor={processor.name}{pinned} transformers-{transformers.__version__} "
            f"torch-{torch.__version__} {self._device} {precision}"
        )
        self._remedy = f"{model.key.rpartition('.')[0]}.precision: float32"

    def embed(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit image features float32 [B, D] of uint8 [H, W, 3] pictures."""
        batches = [self._pictures(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return torch.cat([torch.empty(0, self._model.config.projection_dim, device=self._device), *batches])

    def cosines(self, images_BD: torch.Tensor, texts: Sequence[str], weight: float = 1.0) -> list[float]:
        """`weight` times the cosines of pictures, by their features from `embed`, and texts, row by row.

        Raises ScorerFailed when one is not finite.
        """
        if not texts:
            return []
        unique = {text: row for row, text in enumerate(sorted(set(texts)))}
        words = list(unique)
        texts_UD = torch.cat([self._texts(words[i : i + _BATCH]) for i in range(0, len(words), _BATCH)])
        scores_B = weight * (texts_UD[[unique[text] for text in texts]] * images_BD).sum(-1)
        if not torch.isfinite(scores_B).all():
            raise ScorerFailed(f"{self.fingerprint}: a score is not finite; try {self._remedy}")
        return scores_B.tolist()

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> torch.Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return unit(self._model.get_text_features(**tokens.to(self._device)))

    @torch.inference_mode()
    def _pictures(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self._images(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return unit(self._model.get_image_features(pixel_values=pixels.to(self._device, self._dtype)))


def unit(output: object) -> torch.Tensor:
    """The unit projections float32 [B, D]; transformers before 5 returned them bare, since then in an output object."""
    return F.normalize((output if isinstance(output, torch.Tensor) else output.pooler_output).float(), dim=-1)
