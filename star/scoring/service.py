"""`service:NAME`: a reward service of scorers.services, pictures and prompt records out over HTTP, numbers back.

One POST of JSON a batch, `{"images": [PNG in base64, ...], "records": [prompt records, ...]}`; the answer is
`{"scores": [a number a picture], "rewards": [the same, optional], "fingerprint": "what scored, optional"}`. A request without
pictures comes first and asks whether the service is there. docs/reference/scorers.md has an example.
"""

import math
from collections.abc import Sequence

import numpy as np

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.prompts.record import Prompt
from star.scoring import remote
from star.scoring.score import Score


class ServiceScorer:
    """The service that `name` names. Raises InputError when the configuration has none, or when it does not answer."""

    tags = ()

    def __init__(self, name: str, scorers: Scorers) -> None:
        known, self._key = name.partition(":")[2], f"scorers.services.{name.partition(':')[2]}"
        if known not in scorers.services:
            raise InputError(f"{self._key}: {name} is asked for, but no such service is configured; add it with its `url`")
        self._settings = scorers.services[known]
        self._fingerprint: str | None = None
        try:
            self._ask(([], []))
        except ScorerFailed as error:
            raise InputError(f"{error}; start the service, or correct the address") from None
        what = self._fingerprint or self._settings.url
        self.fingerprint = f"{name} {what} version={self._settings.version}"

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any record can be scored, as far as we know."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Any record can be scored, as far as we know."""

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """The service's numbers for uint8 [H, W, 3] pictures. Raises ScorerFailed when it does not give them."""
        size = self._settings.batch
        batches = [(images[i : i + size], records[i : i + size]) for i in range(0, len(images), size)]
        return [one for scores in remote.in_parallel(self._ask, batches, self._settings.parallel) for one in scores]

    def _ask(self, batch: tuple[Sequence[np.ndarray], Sequence[Prompt]]) -> list[Score]:
        images, records = batch
        body = {"images": [remote.as_png(image) for image in images], "records": [record.as_dict() for record in records]}
        answer = remote.post(self._settings, self._settings.url, body, self._key)
        scores = self._numbers(answer.get("scores"), "scores", len(images))
        rewards = self._numbers(answer.get("rewards", scores), "rewards", len(images))
        fingerprint = answer.get("fingerprint")
        if self._fingerprint not in (None, fingerprint):
            raise ScorerFailed(f"{self._key}: the service was {self._fingerprint!r} and is {fingerprint!r} now; start again")
        self._fingerprint = fingerprint
        return [Score(score, reward) for score, reward in zip(scores, rewards, strict=True)]

    def _numbers(self, values: object, name: str, count: int) -> list[float]:
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            short = repr(values)[:80]
            raise ScorerFailed(f"{self._key}: `{name}` is {short}, not {count} finite numbers; correct the service")
        return [float(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
