"""Stage: comparison. One static page on which people judge pairs of pictures blind; it needs no network and no server.

A pair is one prompt's picture of the same number from both folders. The seed chooses the pairs, their order and the sides; as
many pairs have A on the left as on the right. Pictures are written anew without metadata and in one format, so that nothing but
what they show tells the sides apart. Which side was A stands encoded in the page and is decoded by the export alone.
"""

import base64
import hashlib
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from star.errors import InputError
from star.files import write_bytes, write_text
from star.layout import epoch_of
from star.prompts.record import Prompt
from star.scoring import pictures

FORMAT = "star-votes-1"  # of the exported files
EMBEDDED_AT_MOST = 32 * 2**20  # bytes of pictures; browsers slow down on larger pages


class Pair(NamedTuple):
    """Two pictures of the same number of a prompt."""

    prompt: Prompt
    number: int
    a: Path
    b: Path


class Study(NamedTuple):
    """What was written: the comparison's digest, how many pairs and prompts, whether pictures lie beside the page."""

    id: str
    pairs: int
    prompts: int
    beside: bool


def write(
    folders: tuple[Path, Path],
    out: Path,
    *,
    prompts: Path | None = None,
    seed: int = 0,
    count: int | None = None,
    question: str,
) -> Study:
    """Write `out`/index.html for the pictures of `folders`, A and B; at most `count` pairs.

    Raises InputError when the folders have no pictures, no pair in common, other prompts under equal names, fewer pairs than
    `count`, or when `out` holds another page.
    """
    if count is not None and count < 1:
        raise InputError(f"--count: {count} pairs leave nothing to judge; give 1 or more")
    if not question.strip():
        raise InputError("--question: empty; say what people are to judge")
    a, b = (_pictures_folder(folder) for folder in folders)
    pairs = find_pairs(a, b, prompts)
    if count is not None and count > len(pairs):
        raise InputError(f"--count: {count} pairs are wanted and {len(pairs)} are there; lower it")

    # choose, order and shuffle sides
    rng = np.random.default_rng(seed)
    chosen = choose(pairs, count or len(pairs), rng)
    a_left = rng.permutation(np.arange(len(chosen)) % 2 == 0).tolist()

    # every picture without its metadata, left one first
    contents = []
    for pair, first in zip(chosen, a_left, strict=True):
        left, right = (pair.a, pair.b) if first else (pair.b, pair.a)
        contents.append((_stripped(left), _stripped(right)))
    digest = _digest(chosen, a_left, contents, seed, question)
    page = out / "index.html"
    if page.exists() and digest not in page.read_text(encoding="utf-8"):
        raise InputError(f"{page}: is another page; name another folder with --out")

    # the page, with the pictures inside it or beside it
    beside = sum(len(left) + len(right) for left, right in contents) > EMBEDDED_AT_MOST
    items = []
    for number, (pair, (left, right)) in enumerate(zip(chosen, contents, strict=True)):
        sources = {}
        for side, content in (("left", left), ("right", right)):
            if beside:
                sources[side] = f"pictures/{number:04d}-{side}.webp"
                write_bytes(out / sources[side], content)
            else:
                sources[side] = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        prompt = pair.prompt
        items.append({"prompt_id": prompt.id, "picture": pair.number, "tag": prompt.tag, "prompt": prompt.text} | sources)
    key = {"a": str(folders[0]), "b": str(folders[1]), "a_side": ["left" if first else "right" for first in a_left]}
    encoded = base64.b64encode(json.dumps(key).encode()).decode()
    data = {"format": FORMAT, "comparison": digest, "seed": seed, "question": question, "key": encoded, "items": items}
    write_text(page, _template().render(data=data, question=question, pairs=len(items)))
    return Study(digest, len(chosen), len({pair.prompt.id for pair in chosen}), beside)


def find_pairs(a: Path, b: Path, prompts: Path | None) -> list[Pair]:
    """The pairs of two folders, in A's order. Raises InputError as `write`."""
    found_a, found_b = (pictures.find(folder, "prompt", prompts) for folder in (a, b))
    of_b = {(sample.record.id, sample.number): sample for sample in found_b}
    missing = {sample.record.id for sample in found_a} ^ {sample.record.id for sample in found_b}
    if missing:
        first = min(missing)
        lacking = b if any(sample.record.id == first for sample in found_a) else a
        raise InputError(
            f"{lacking}: no pictures of prompt `{first}`; sample both folders from one file, or give --prompts FILE"
        )
    pairs = []
    for sample in found_a:
        other = of_b.get((sample.record.id, sample.number))
        if other is None:
            continue
        if other.record.text != sample.record.text:
            raise InputError(
                f"{b}: prompt `{sample.record.id}` is another text than in {a}; compare pictures of the same prompts"
            )
        pairs.append(Pair(sample.record, sample.number, sample.path, other.path))
    if not pairs:
        raise InputError(f"{b}: no picture has the number of one in {a}; compare pictures of the same numbers")
    return pairs


def choose(pairs: list[Pair], count: int, rng: np.random.Generator) -> list[Pair]:
    """`count` pairs in random order, of as many prompts as can be: no prompt has two before every other has one."""
    shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
    taken: dict[str, int] = {}
    rounds = []
    for pair in shuffled:
        rounds.append(taken.get(pair.prompt.id, 0))
        taken[pair.prompt.id] = rounds[-1] + 1
    chosen = [shuffled[i] for i in np.argsort(rounds, kind="stable")[:count]]
    return [chosen[i] for i in rng.permutation(count)]


def _pictures_folder(folder: Path) -> Path:
    """The folder itself, or of a run the pictures of its last epoch."""
    epochs = [child for child in (folder / "samples").glob("epoch*") if epoch_of(child) is not None]
    return max(epochs, key=epoch_of, default=folder)


def _stripped(path: Path) -> bytes:
    """A picture as lossless WebP without metadata: `star sample` writes the checkpoint's name into its PNGs."""
    buffer = io.BytesIO()
    Image.fromarray(pictures.read(path)).save(buffer, "WEBP", lossless=True, quality=20, method=1)
    return buffer.getvalue()


def _digest(pairs: list[Pair], a_left: list[bool], contents: list[tuple[bytes, bytes]], seed: int, question: str) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, seed, question]).encode())
    for pair, first, (left, right) in zip(pairs, a_left, contents, strict=True):
        digest.update(json.dumps([pair.prompt.id, pair.prompt.text, pair.number, first]).encode())
        digest.update(hashlib.sha256(left).digest() + hashlib.sha256(right).digest())
    return digest.hexdigest()[:16]


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("star.compare").joinpath("page.html.j2").read_text(encoding="utf-8"))
