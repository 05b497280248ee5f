"""ImageReward (arXiv 2304.05977): how well people would like a picture for its prompt, by a BLIP whose text looks at it.

Its authors publish a pickle for their own copy of BLIP, whose package needs a transformers of 2023. This scorer reads the same
weights under the names of transformers' BLIP, in safetensors (docs/reference/scorers.md has the map of names).

Shape suffixes: B pictures, N patches, L text tokens, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from torch import nn
from transformers import BertTokenizer, BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel, CLIPImageProcessorPil

from star.config import Scorers
from star.errors import ScorerFailed
from star.hub.weights import PRECISIONS, digest, load_model, load_tokenizer, resolve
from star.prompts.record import Prompt
from star.scoring import golden, sources
from star.scoring.score import Score, require_words

_BATCH = 16
_TOKENS = 35  # as published; longer prompts are cut
_MEAN, _DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the published head's outputs on its authors' data


class ImageRewardModel(BlipPreTrainedModel):
    """Vision tower, a text encoder that attends to its patches, and a head, linear throughout, on the first text token."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        width = config.text_config.hidden_size
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 1024), nn.Dropout(0.2)),
            *(nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1)),
            *(nn.Linear(64, 16), nn.Linear(16, 1)),
        )
        self.post_init()

    def rate(self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards [B] of prepared pictures for texts [B, L], zero on average and of deviation one on the authors' data."""
        patches_BND = self.vision_model(pixel_values=pixels).last_hidden_state
        seen = self.text_encoder(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=patches_BND,
            encoder_attention_mask=torch.ones(patches_BND.shape[:2], dtype=torch.long, device=patches_BND.device),
        )
        return (self.mlp(seen.last_hidden_state[:, 0])[:, 0].float() - _MEAN) / _DEVIATION


class ImageRewardScorer:
    """ImageReward with the model of scorers.imagereward; score and reward are the model's, about -2 to 2.

    Raises InputError when it cannot be loaded, and ScorerFailed when it is wrong on a golden picture.
    """

    tags = ()

    def __init__(self, scorers: Scorers) -> None:
        source, precision = sources.imagereward(scorers), scorers.imagereward.precision
        self._device, self._dtype = resolve(scorers.device), PRECISIONS[precision]
        model = load_model(ImageRewardModel, source)
        self._tokenizer = load_tokenizer(BertTokenizer, source, model)  # BERT's with [DEC] and [ENC], beside the weights
        side = model.config.vision_config.image_size
        self._images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.fingerprint = (
            f"imagereward {source.name}@{digest(model)} transformers-{transformers.__version__} torch-{torch.__version__} "
            f"{self._device} {precision}"
        )
        self._model = model.to(self._device, self._dtype)
        golden.check_preferences(golden.preferences(source.name), self._rewards, self.fingerprint)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any prompt can be compared with a picture."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        require_words(records, "imagereward")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Score uint8 [H, W, 3] pictures. Raises ScorerFailed when a reward is not finite."""
        self.check(records)
        return [Score(value, value) for value in self._rewards(images, [record.text for record in records])]

    @torch.inference_mode()
    def _rewards(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(images), _BATCH):
            batch, words = list(images[start : start + _BATCH]), list(texts[start : start + _BATCH])
            pixels = self._images(batch, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
            read = self._tokenizer(words, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt")
            inputs = (
                pixels.to(self._device, self._dtype),
                read.input_ids.to(self._device),
                read.attention_mask.to(self._device),
            )
            rewards += self._model.rate(*inputs).tolist()
        if not np.isfinite(rewards).all():
            raise ScorerFailed(f"{self.fingerprint}: a reward is not finite; try scorers.imagereward.precision: float32")
        return rewards
