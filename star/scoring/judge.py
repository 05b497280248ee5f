"""`judge:NAME`: a vision-language model of scorers.judges as the scorer, over an OpenAI-compatible endpoint.

Each picture is one chat of the question and the picture, at temperature 0. The reply's last `Score: N`, N from 0 to 10, is the
verdict; a reply without one is answered by a demand for that line alone. Source of question and parser: ours.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from star.config import Scorers
from star.errors import InputError, ScorerFailed
from star.prompts.record import Prompt
from star.scoring import golden, remote
from star.scoring.score import Score, require_words

QUESTION = """The picture was made by a program that was asked for this:

{prompt}

How well does the picture show what was asked for? Look for every object, its number, colour and place, and for every word \
that is to be written. Name in one sentence what is missing or wrong. Then end with one line of the form

Score: N

where N is a number from 0 (nothing of it) to 10 (all of it, without a flaw)."""
DEMAND = "End with the one line `Score: N`, N a number from 0 to 10. Write that line alone."
HIGHEST = 10.0
_SCORE = re.compile(r"\bscore[\s:=*_`]{1,8}(\d+(?:\.\d+)?)(?![\d.]*\d)", re.IGNORECASE)


def parse(reply: str) -> float | None:
    """The number of the last `Score: N` of a reply, with or without `/10` or Markdown; None where none is from 0 to 10."""
    found = _SCORE.findall(reply)
    value = float(found[-1]) if found else -1.0
    return value if 0 <= value <= HIGHEST else None


class JudgeScorer:
    """The judge that `name` names; `score` and `reward` are its number / 10, a finding is its `reply`.

    Raises InputError when the configuration has none, or when it does not answer, and ScorerFailed when it is wrong on a golden
    picture.
    """

    tags = ()

    def __init__(self, name: str, scorers: Scorers) -> None:
        known = name.partition(":")[2]
        self._key = f"scorers.judges.{known}"
        if known not in scorers.judges:
            raise InputError(f"{self._key}: {name} is asked for, but no such judge is configured; add its `url` and `model`")
        self._settings = scorers.judges[known]
        self._question = self._settings.question or QUESTION
        asked = hashlib.sha256(f"{self._question}{DEMAND}{self._settings.max_tokens}".encode()).hexdigest()[:12]
        self.fingerprint = f"{name} {self._settings.model} version={self._settings.version} question@{asked}"
        try:
            self._reply([{"role": "user", "content": "Write the one line `Score: 10`."}])
        except ScorerFailed as error:
            raise InputError(f"{error}; start the service, or correct address and model") from None
        golden.check_preferences(golden.built_in(), self._scores, self.fingerprint)

    @staticmethod
    def can_score(record: Prompt) -> bool:
        """Any prompt can be asked about."""
        return True

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise InputError when a prompt is empty."""
        require_words(records, "a judge")

    def __call__(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> list[Score]:
        """Judge uint8 [H, W, 3] pictures, several at once. Raises ScorerFailed when the model gives no number."""
        self.check(records)
        pairs = [(image, record.text) for image, record in zip(images, records, strict=True)]
        judged = remote.in_parallel(self._judge, pairs, self._settings.parallel)
        return [Score(value, value, {"reply": reply}) for value, reply in judged]

    def _scores(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        pairs = list(zip(images, texts, strict=True))
        return [value for value, _ in remote.in_parallel(self._judge, pairs, self._settings.parallel)]

    def _judge(self, pair: tuple[np.ndarray, str]) -> tuple[float, str]:
        """(verdict 0 to 1, the reply that it was read from)."""
        image, prompt = pair
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{remote.as_png(image)}"}}
        question = {"type": "text", "text": self._question.replace("{prompt}", prompt)}
        chat: list[dict] = [{"role": "user", "content": [picture, question]}]
        for _ in range(self._settings.retries + 1):
            reply = self._reply(chat)
            if (value := parse(reply)) is not None:
                return value / HIGHEST, reply
            chat = [chat[0], {"role": "assistant", "content": reply}, {"role": "user", "content": DEMAND}]
        short = " ".join(reply.split())[-120:]
        raise ScorerFailed(f"{self._key}: no `Score: N` from 0 to 10 for the prompt {prompt!r}, but {short!r}")

    def _reply(self, chat: list[dict]) -> str:
        body = {"model": self._settings.model, "messages": chat, "temperature": 0, "max_tokens": self._settings.max_tokens}
        answer = remote.post(self._settings, f"{self._settings.url.rstrip('/')}/chat/completions", body, self._key)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ScorerFailed(f"{self._key}: the answer has no choices[0].message.content: {str(answer)[:120]}") from None
        return content if isinstance(content, str) else ""
