"""GenEval (arXiv 2310.11513) as a scorer: a detector's eyes, the official rules, and a soft training reward."""

from collections.abc import Sequence

import numpy as np

from star.config import Scorers
from star.errors import ScorerFailed
from star.prompts.record import Prompt
from star.scoring import rules
from star.scoring.detector import make_detector
from star.scoring.score import Score


class GenevalScorer:
    """GenEval with the detector of `scorers`: `score` is 1.0 or 0.0 by the official rules, `reward` the soft one.

    Raises InputError when weights are missing and ScorerFailed when the detector is wrong on a golden picture.
    """

    tags = rules.TAGS

    def __init__(self, scorers: Scorers) -> None:
        self._detector = make_detector(scorers)
        self.fingerprint = f"geneval {self._detector.fingerprint} numpy-{np.__version__} {rules.RULES}"
        self._guard()

    def _guard(self) -> None:
        """Score the golden pictures: a detector that has silently gone blind stops here."""
        golden = self._detector.golden
        records = [Prompt(g.name, "geneval", "golden", g.name, metadata=g.metadata) for g in golden]
        for g, scored in zip(golden, self([g.image for g in golden], records), strict=True):
            found = scored.findings
            if found["correct"] != g.correct:
                raise ScorerFailed(
                    f"the detector is wrong on a golden picture ({g.name}): judged {found['correct']}, "
                    f"found {found['details']} {' '.join(found['reason'].split())} ({self._detector.fingerprint})"
                )

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Whether the metadata says which objects to look for."""
        return bool(record.metadata.get("include"))

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a record's metadata cannot be judged, or names a class that the detector does not know."""
        remedy = "use a GenEval class, or a scorers.geneval.model with such a label"
        for record in records:
            rules.check(record.text, record.metadata)
            rules.check_classes(record.text, record.metadata, self._detector.classes, remedy)

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Judge uint8 [H, W, 3] pictures; findings are the official correct, reason, metadata, details, and colors."""
        self.check(records)
        metadata = [record.metadata for record in records]
        found = [rules.select(seen, m["tag"]) for seen, m in zip(self._detector.detect(images), metadata, strict=True)]
        pairs = [(images[i], d) for i, m in enumerate(metadata) for d in rules.color_candidates(found[i], m)]
        colors = {id(d): color for (_, d), color in zip(pairs, self._detector.colors_of(pairs), strict=True)}
        return [rules.verdict(f, colors, r.text, m) for f, r, m in zip(found, records, metadata, strict=True)]
