"""LAION's aesthetic predictor: how much people like a picture on average, 1 to 10, whatever was asked for.

A small head on the unit image features of CLIP ViT-L/14 (github.com/christophschuhmann/improved-aesthetic-predictor), in the
layout in which it is on the hub: a CLIP vision model with `layers`.

Shape suffixes: B pictures, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from star.config import Scorers
from star.errors import ScorerFailed
from star.hub.weights import PRECISIONS, digest, load, load_model, resolve
from star.prompts.record import Prompt
from star.scoring import sources
from star.scoring.score import Score

_BATCH = 32
_HIGHEST = 10.0


class AestheticPredictor(CLIPVisionModelWithProjection):
    """The vision tower and the head, linear throughout; its dropouts do nothing here but to number the layers."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(
            *(nn.Linear(config.projection_dim, 1024), nn.Dropout(0.2)),
            *(nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1)),
            *(nn.Linear(64, 16), nn.Linear(16, 1)),
        )
        self.post_init()

    def rate(self, pixels: torch.Tensor) -> torch.Tensor:
        """Ratings [B] of prepared pictures."""
        features_BD = F.normalize(self(pixel_values=pixels).image_embeds, dim=-1)
        return self.layers(features_BD)[:, 0]


class AestheticScorer:
    """The predictor of scorers.aesthetic; the reward is score / 10. Raises InputError when it cannot be loaded."""

    tags = ()

    def __init__(self, scorers: Scorers) -> None:
        source, precision = sources.aesthetic(scorers), scorers.aesthetic.precision
        self._device, self._dtype = resolve(scorers.device), PRECISIONS[precision]
        model = load_model(AestheticPredictor, source)
        self._images = load(CLIPImageProcessorPil, source)
        self.fingerprint = (
            f"aesthetic {source.name}@{digest(model)} transformers-{transformers.__version__} torch-{torch.__version__} "
            f"{self._device} {precision}"
        )
        self._model = model.to(self._device, self._dtype)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any: the prompt is not looked at."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Any record will do."""

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Rate uint8 [H, W, 3] pictures. Raises ScorerFailed when a rating is not finite."""
        scores: list[float] = []
        for start in range(0, len(images), _BATCH):
            batch = list(images[start : start + _BATCH])
            pixels = self._images(batch, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
            scores += self._model.rate(pixels.to(self._device, self._dtype)).float().tolist()
        if not np.isfinite(scores).all():
            raise ScorerFailed(f"{self.fingerprint}: a rating is not finite; try scorers.aesthetic.precision: float32")
        return [Score(value, value / _HIGHEST) for value in scores]
