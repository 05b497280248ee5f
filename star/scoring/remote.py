"""Requests to services elsewhere: tried again where that may help, and stopped in one line where it does not.

Nothing is sent to the wind: the only address is the configured one, and a token is read from the environment variable that the
configuration names, never from a file of results.
"""

import base64
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
from PIL import Image

from star.config import Remote
from star.errors import InputError, ScorerFailed

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
WAIT, _LONGEST = 0.5, 60.0  # seconds before the second try, doubled at each, and at most


def headers(settings: Remote, key: str) -> dict[str, str]:
    """The authorisation that a service wants. Raises InputError when the variable of its token is not set."""
    if settings.token_variable is None:
        return {}
    token = os.environ.get(settings.token_variable)
    if not token:
        raise InputError(f"{key}.token_variable: {settings.token_variable} is not set; export it where star is started")
    return {"Authorization": f"Bearer {token}"}


def post(settings: Remote, url: str, body: dict, key: str) -> dict[str, Any]:
    """The JSON object that a service answers. Raises ScorerFailed, naming `key`, when it does not after all tries."""
    sent = headers(settings, key)
    why, wait = "", WAIT
    for attempt in range(settings.retries + 1):
        if attempt:
            time.sleep(min(wait, _LONGEST))
            wait *= 2
        try:
            response = requests.post(url, json=body, headers=sent, timeout=settings.timeout, allow_redirects=False)
        except requests.RequestException as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        if response.status_code == 200:
            return _object(response, url, key)
        why = f"HTTP {response.status_code} {' '.join(response.text.split())[:200]}".strip()
        if response.status_code not in _AGAIN:
            raise ScorerFailed(f"{key}: {url} refuses ({why})")
        wait = max(wait, _asked_for(response))
    raise ScorerFailed(f"{key}: {url} does not answer after {settings.retries + 1} tries ({why})")


def in_parallel(work: Callable, items: Sequence, at_once: int) -> list:
    """`work` of every item, in their order, several at once. Raises what the first failing one raised."""
    with ThreadPoolExecutor(at_once) as threads:
        futures = [threads.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def as_png(image: np.ndarray) -> str:
    """A uint8 [H, W, 3] picture as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _object(response: requests.Response, url: str, key: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise ScorerFailed(f"{key}: {url} answers no JSON object but {response.text[:80]!r}")
    return answer


def _asked_for(response: requests.Response) -> float:
    """Seconds of the header Retry-After; 0 where it is missing or a date."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0
