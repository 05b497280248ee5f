"""PickScore (arXiv 2305.01569): a CLIP model's score of a picture for its prompt.

score = exp(logit_scale) * cosine(text, image). The reported score is raw; the training reward is raw / 26, about 1 for a good
picture under the real model. A folder with the same classes serves as well: the miniature's own model is one.

Shape suffixes: B pictures or prompts, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch

from star.config import Scorers
from star.prompts.record import Prompt
from star.scoring import golden, sources
from star.scoring.clip import Clip
from star.scoring.score import Score, require_words

REWARD_DIVISOR = 26.0


class PickScorer:
    """PickScore with the CLIP model, tokenizer and image processor that `scorers` names: folders or hub repositories.

    The model runs in scorers.pickscore.precision on scorers.device; cosines and scores are float32.
    Raises InputError when one of them cannot be loaded, or when tokenizer and model do not belong together, and ScorerFailed
    when the model is wrong on a golden picture.
    """

    tags = ()

    def __init__(self, scorers: Scorers) -> None:
        model, processor = sources.pickscore_model(scorers), sources.pickscore_processor(scorers)
        self._clip = Clip(model, processor, device=scorers.device, precision=scorers.pickscore.precision)
        self.fingerprint = f"pickscore {self._clip.fingerprint}"
        golden.check_preferences(golden.preferences(model.name), self._raw, self.fingerprint)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any prompt can be compared with a picture."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        require_words(records, "pickscore")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Score uint8 [H, W, 3] pictures: raw score, and reward = raw / 26."""
        return self.compare(self.embed(images), records)

    def embed(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit image features float32 [B, D] of uint8 [H, W, 3] pictures."""
        return self._clip.embed(images)

    def compare(self, images_BD: torch.Tensor, records: Sequence[Prompt]) -> list[Score]:
        """Score pictures by their features from `embed`, row by row."""
        self.check(records)
        raw = self._clip.cosines(images_BD, [record.text for record in records], self._clip.scale)
        return [Score(value, value / REWARD_DIVISOR) for value in raw]

    def _raw(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        return self._clip.cosines(self.embed(images), texts, self._clip.scale)
