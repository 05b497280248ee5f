"""PickScore (arXiv 2305.01569): a CLIP model's score of a picture for its prompt.

score = exp(logit_scale) * cosine(text, image). The reported score is raw; the training reward is raw / 26, about 1 for a good
picture under the real model. A folder with the same classes serves as well: the miniature's own model is one.

Shape suffixes: B pictures or prompts, U unique prompts, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import CLIPImageProcessorPil, CLIPModel

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.hub.check import is_repository
from star.hub.weights import PRECISIONS, digest, load, load_model, load_tokenizer, resolve
from star.prompts.record import Prompt
from star.scoring import golden

REWARD_DIVISOR = 26.0
_BATCH = 32


def _embedding(output: object) -> torch.Tensor:
    """The unit projections float32 [B, D]; transformers before 5 returned them bare, since then in an output object."""
    return F.normalize((output if isinstance(output, torch.Tensor) else output.pooler_output).float(), dim=-1)


class PickScorer:
    """PickScore with the CLIP model, tokenizer and image processor that `scorers` names: folders or hub repositories.

    The model runs in scorers.pickscore.precision on scorers.device; cosines and scores are float32.
    Raises InputError when one of them cannot be loaded, or when tokenizer and model do not belong together, and ScorerFailed
    when the model is wrong on a golden picture.
    """

    def __init__(self, scorers: Scorers) -> None:
        model, processor = scorers.pickscore.model, scorers.pickscore.processor
        self._device, self._dtype = resolve(scorers.device), PRECISIONS[scorers.pickscore.precision]
        revision = scorers.pickscore.processor_revision
        self._model = load_model(CLIPModel, model, scorers.pickscore.revision, "pickscore.model")
        weights = digest(self._model)
        self._scale = self._model.logit_scale.detach().exp().item()  # before rounding: in bfloat16 it is off by a percent
        self._tokenizer = load_tokenizer(processor, revision, "pickscore.processor", self._model)
        self._images = load(CLIPImageProcessorPil, processor, revision, "pickscore.processor")
        self._model.to(self._device, self._dtype)
        pinned = f"@{revision[:12]}" if is_repository(processor) else ""
        self.fingerprint = (
            f"pickscore {model}@{weights} processor={processor}{pinned} transformers-{transformers.__version__} "
            f"torch-{torch.__version__} {self._device} {scorers.pickscore.precision}"
        )
        self._guard(golden.preferences(model))

    def _guard(self, known: Sequence[golden.Preference]) -> None:
        """Raise ScorerFailed when a golden picture's caption does not score higher than the worse one."""
        images_BD = self.embed([k.image for k in known])
        fits = self.compare(images_BD, [Prompt(k.prompt, "pickscore", "golden", k.prompt) for k in known])
        worse = self.compare(images_BD, [Prompt(k.worse, "pickscore", "golden", k.worse) for k in known])
        for k, high, low in zip(known, fits, worse, strict=True):
            if high["score"] <= low["score"]:
                raise ScorerFailed(
                    f"the preference model is wrong on a golden picture: {k.prompt!r} fits it and scores {high['score']:.2f}, "
                    f"{k.worse!r} does not and scores {low['score']:.2f} ({self.fingerprint})"
                )

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        for record in records:
            if not record.text.strip():
                raise InputError(f"prompt {record.id!r}: empty; pickscore needs words to compare the picture with")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[dict]:
        """Score uint8 [H, W, 3] pictures: raw score, and reward = raw / 26."""
        return self.compare(self.embed(images), records)

    def embed(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit image features float32 [B, D] of uint8 [H, W, 3] pictures."""
        batches = [self._pictures(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return torch.cat([torch.empty(0, self._model.config.projection_dim, device=self._device), *batches])

    def compare(self, images_BD: torch.Tensor, records: Sequence[Prompt]) -> list[dict]:
        """Score pictures by their features from `embed`, row by row."""
        self.check(records)
        if not len(records):
            return []
        prompts = [record.text for record in records]
        unique = {prompt: row for row, prompt in enumerate(sorted(set(prompts)))}
        words = list(unique)
        texts_UD = torch.cat([self._texts(words[i : i + _BATCH]) for i in range(0, len(words), _BATCH)])
        rows = [unique[prompt] for prompt in prompts]
        scores = self._scale * (texts_UD[rows] * images_BD).sum(-1)
        if not torch.isfinite(scores).all():
            raise ScorerFailed(f"{self.fingerprint}: a score is not finite; try scorers.pickscore.precision: float32")
        return [{"score": s, "reward": s / REWARD_DIVISOR} for s in scores.tolist()]

    @torch.inference_mode()
    def _texts(self, prompts: list[str]) -> torch.Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return _embedding(self._model.get_text_features(**tokens.to(self._device)))

    @torch.inference_mode()
    def _pictures(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self._images(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return _embedding(self._model.get_image_features(pixel_values=pixels.to(self._device, self._dtype)))
