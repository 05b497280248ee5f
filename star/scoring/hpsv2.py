"""HPSv2 (arXiv 2306.09341): the cosine of a picture and its prompt under a CLIP ViT-H/14 trained on people's choices.

Its authors publish a pickle for open_clip; this scorer reads the same weights as a transformers CLIPModel, in safetensors.
"""

from collections.abc import Sequence

import numpy as np

from star.config import Scorers
from star.prompts.record import Prompt
from star.scoring import golden, sources
from star.scoring.clip import Clip
from star.scoring.score import Score, require_words


class HpsScorer:
    """HPSv2 with the CLIP model of scorers.hpsv2; score and reward are the cosine, about 0.2 to 0.35 under the real model.

    Raises InputError when it cannot be loaded, and ScorerFailed when it is wrong on a golden picture.
    """

    tags = ()

    def __init__(self, scorers: Scorers) -> None:
        model, processor = sources.hpsv2_model(scorers), sources.hpsv2_processor(scorers)
        self._clip = Clip(model, processor, device=scorers.device, precision=scorers.hpsv2.precision)
        self.fingerprint = f"hpsv2 {self._clip.fingerprint}"
        golden.check_preferences(golden.preferences(model.name), self._cosines, self.fingerprint)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any prompt can be compared with a picture."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        require_words(records, "hpsv2")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Score uint8 [H, W, 3] pictures."""
        self.check(records)
        return [Score(value, value) for value in self._cosines(images, [record.text for record in records])]

    def _cosines(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        return self._clip.cosines(self._clip.embed(images), texts)
