"""The prompt files that Flow-GRPO (arXiv 2505.05470) publishes: fetched once, verified, cached. The project holds no copy.

Every file is known by its git blob hash, wherever it comes from: cache, mirror or network. Splits: `test` is the published test
file; `validation` (ours) is carved from the published train file by a fixed seed, `train` is what is left of it.
"""

import hashlib
import io
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from star.errors import InputError
from star.files import write_bytes

BASE = "https://raw.githubusercontent.com/yifan123/flow_grpo/879042cf5707f8b90daa98d147d7deac2317c5da/"
CACHE = Path("resources/prompts")
BLOBS = {
    "dataset/ocr/train.txt": "3ce0521b77b0a9031191d66ecc36ebaaf27a3922",
    "dataset/ocr/test.txt": "8deb4f8d8f2e863f45353354243669b3c991a6a2",
    "dataset/pickscore/train.txt": "a437bd921c03fbc00c4e7ce148ae2d28fcd6e49b",
    "dataset/pickscore/test.txt": "45f05231b969fb5f74c8debd606b22cd3be27f8e",
}
VALIDATION_PROMPTS = 256
_INSTEAD = {
    "ocr": "set prompts.ocr: generated (captions of our own)",
    "pickscore": "take pickscore out of `tasks` (only ocr captions can be generated: prompts.ocr)",
}
_SEED = 43
_TIMEOUT = 30  # seconds without an answer


def blob_hash(data: bytes) -> str:
    """The hash by which git names this content (SHA-1 of a header and the bytes)."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _verified(data: bytes, name: str, origin: object, remedy: str) -> bytes:
    if (found := blob_hash(data)) != BLOBS[name]:
        raise InputError(f"{origin}: not the published {name}: git blob {found}, expected {BLOBS[name]}; {remedy}")
    return data


@dataclass(frozen=True)
class PublishedFile:
    """A published file by its name, in the folder `mirror` if there is one, else in the cache or fetched.

    `instead` is what else can be done where it cannot be had.
    """

    name: str
    mirror: str | None
    instead: str

    @classmethod
    def of(cls, prompt_set: str, split: str, mirror: str | None) -> "PublishedFile":
        """The file that a split of "ocr" or "pickscore" is read from."""
        name = f"dataset/{prompt_set}/{'test' if split == 'test' else 'train'}.txt"
        return cls(name, mirror, _INSTEAD[prompt_set])

    def local(self) -> Path | None:
        """Where the file lies on this machine; None where it is neither mirrored nor cached.

        Raises InputError when the mirror lacks it, or when it is not the published one.
        """
        path = (CACHE if self.mirror is None else Path(self.mirror)) / self.name
        if not path.is_file():
            if self.mirror is None:
                return None
            raise InputError(f"prompts.mirror: no file {path}; a clone of github.com/yifan123/flow_grpo is a mirror")
        remedy = "delete it, and it is fetched again" if self.mirror is None else "prompts.mirror needs an unchanged copy"
        _verified(path.read_bytes(), self.name, path, remedy)
        return path

    def fetch(self) -> Path:
        """Bring the file into the cache, unless it is on this machine; returns where it lies.

        Raises InputError when it cannot be had, with what to do, or is not the published one.
        """
        if (path := self.local()) is not None:
            return path
        url = BASE + self.name
        remedies = f"connect this machine once, set prompts.mirror to a folder that holds {self.name}, or {self.instead}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read()
        except (OSError, HTTPException) as error:
            why = " ".join(str(error).split())
            raise InputError(f"{url}: not cached and cannot be fetched ({why}); {remedies}") from None
        _verified(data, self.name, url, f"nothing was kept; {remedies}")
        path = CACHE / self.name
        write_bytes(path, data)
        print(f"fetched {url} into {path}")
        return path


def captions(prompt_set: str, split: str, mirror: str | None) -> list[str]:
    """The captions of a split of "ocr" or "pickscore", in the file's order. Raises InputError as `PublishedFile.fetch`."""
    text = PublishedFile.of(prompt_set, split, mirror).fetch().read_bytes().decode()
    # As the source reads them: a line ends at \n, \r or both, and at nothing else that Unicode calls a line's end.
    lines = [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    if split == "test":
        return lines
    drawn = np.random.default_rng([_SEED, *prompt_set.encode()]).permutation(len(lines))[:VALIDATION_PROMPTS]
    validation = dict.fromkeys(lines[i] for i in sorted(drawn))
    return list(validation) if split == "validation" else [line for line in lines if line not in validation]
