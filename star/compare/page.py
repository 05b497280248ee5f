"""Stage: comparison. One static page on which people judge pairs of pictures blind; it needs no network and no server.

A pair is one prompt's picture of the same number from both folders. The seed chooses the pairs, their order and the sides; as
many pairs have A on the left as on the right. Pictures are written anew without metadata and in one format, so that nothing but
what they show tells the sides apart. Which side was A stands encoded in the page and is decoded by the export alone.
"""

import base64
import hashlib
import json
import sys
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image
from tqdm import tqdm

from star.errors import InputError
from star.files import write_text
from star.layout import epoch_of
from star.prompts.record import Prompt
from star.scoring import pictures, samples

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

    # every picture without its metadata, the left one first; a large study does not fit into memory
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".pictures-") as folder:
        names = _strip_all(chosen, a_left, Path(folder))
        digest = _digest(chosen, a_left, [Path(folder, name) for name in names], seed, question)
        page = out / "index.html"
        if page.exists() and digest not in page.read_text(encoding="utf-8"):
            raise InputError(f"{page}: is another page; name another folder with --out")

        # the page, with the pictures inside it or beside it
        beside = sum(Path(folder, name).stat().st_size for name in names) > EMBEDDED_AT_MOST
        if beside:
            (out / "pictures").mkdir(exist_ok=True)
            for name in names:
                Path(folder, name).replace(out / "pictures" / name)
        sources = [f"pictures/{name}" if beside else _embedded(Path(folder, name)) for name in names]
    items = [
        {"prompt_id": pair.prompt.id, "picture": pair.number, "tag": pair.prompt.tag, "prompt": pair.prompt.text}
        | {"left": left, "right": right}
        for pair, left, right in zip(chosen, sources[::2], sources[1::2], strict=True)
    ]
    key = {"a": str(folders[0]), "b": str(folders[1]), "a_side": ["left" if first else "right" for first in a_left]}
    encoded = base64.b64encode(json.dumps(key).encode()).decode()
    data = {"format": FORMAT, "comparison": digest, "seed": seed, "question": question, "key": encoded, "items": items}
    write_text(page, _template().render(data=data, question=question, pairs=len(items)))
    return Study(digest, len(chosen), len({pair.prompt.id for pair in chosen}), beside)


def find_pairs(a: Path, b: Path, prompts: Path | None) -> list[Pair]:
    """The pairs of two folders, in A's order. Raises InputError as `write`."""
    found_a, found_b = (samples.find(folder, "prompt", prompts) for folder in (a, b))
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


def _strip_all(pairs: list[Pair], a_left: list[bool], folder: Path) -> list[str]:
    """Write the pairs' pictures as lossless WebP; returns the files' names: left and right of the first pair, and so on.

    Nothing of a picture's file is kept but its pixels: `star sample` writes the checkpoint's name into its PNGs.
    """
    names = []
    interval = 0.1 if sys.stderr.isatty() else 10
    for number, (pair, first) in enumerate(zip(tqdm(pairs, unit="pair", mininterval=interval), a_left, strict=True)):
        for side, path in zip(("left", "right"), (pair.a, pair.b) if first else (pair.b, pair.a), strict=True):
            names.append(f"{number:04d}-{side}.webp")
            Image.fromarray(pictures.read(path)).save(folder / names[-1], "WEBP", lossless=True, quality=20, method=1)
    return names


def _embedded(file: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _digest(pairs: list[Pair], a_left: list[bool], files: list[Path], seed: int, question: str) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, seed, question]).encode())
    for pair, first in zip(pairs, a_left, strict=True):
        digest.update(json.dumps([pair.prompt.id, pair.prompt.text, pair.number, first]).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("star.compare").joinpath("page.html.j2").read_text(encoding="utf-8"))
