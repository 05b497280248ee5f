"""CLIPScore (arXiv 2104.08718): 100 * max(cosine(text, image), 0), as torchmetrics reports it.

The paper weighs by 2.5 and puts "A photo depicts" before a caption; benchmarks of generated pictures do neither.
"""

from collections.abc import Sequence

import numpy as np

from star.config import Scorers
from star.prompts.record import Prompt
from star.scoring import golden, sources
from star.scoring.clip import Clip
from star.scoring.score import Score, require_words

_WEIGHT = 100.0


class ClipScorer:
    """CLIPScore with the CLIP model of scorers.clipscore; the reward is score / 100.

    Raises InputError when it cannot be loaded, and ScorerFailed when it is wrong on a golden picture.
    """

    tags = ()

    def __init__(self, scorers: Scorers) -> None:
        source = sources.clipscore(scorers)
        self._clip = Clip(source, source, device=scorers.device, precision=scorers.clipscore.precision)
        self.fingerprint = f"clipscore {self._clip.fingerprint}"
        golden.check_preferences(golden.preferences(source.name), self._cosines, self.fingerprint)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any prompt can be compared with a picture."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        require_words(records, "clipscore")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Score uint8 [H, W, 3] pictures, 0 to 100."""
        self.check(records)
        scores = [max(value, 0.0) for value in self._cosines(images, [record.text for record in records])]
        return [Score(value, value / _WEIGHT) for value in scores]

    def _cosines(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        return self._clip.cosines(self._clip.embed(images), texts, _WEIGHT)
