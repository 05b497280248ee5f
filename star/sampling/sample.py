"""Stage: sampling. Images of a checkpoint on a prompt file, in GenEval's official layout, by the Euler ODE."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from star.allocation.columns import cut_prompts
from star.config import DRAWN_BY, Compute, Evaluation, Policy
from star.errors import InputError
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import noise
from star.models.sd3 import Encoded, Generator, origin
from star.prompts.record import Prompt, read


def _save_png(picture: object, path: Path, **texts: str) -> None:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    draft = path.with_suffix(".tmp")
    Image.fromarray(picture).save(draft, "PNG", pnginfo=info)
    draft.replace(path)


def _folder(out: Path, number: int, record: Prompt) -> Path:
    """The prompt's folder with its official metadata line."""
    folder = out / f"{number:05d}"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    metadata = {**record.metadata, **{k: v for k, v in record.as_dict().items() if k in ("prompt", "id", "task", "core")}}
    (folder / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
    return folder


def draw(
    generator: Generator, prompts: Encoded, empty: Encoded | None, schedule: Schedule, names: list[tuple[str, int]], seed: int
) -> list[np.ndarray]:
    """Pictures uint8 [H, W, 3] of encoded prompts by the ODE. (prompt id, picture) of `names` and `seed` name the noise."""
    starts = torch.stack([noise((1, *generator.latent_shape()), "test", seed, *name) for name in names])
    return generator.decode(generator.sample(starts, prompts, empty, schedule).latents_BSCHW[:, -1])


def sample(
    policy: Policy,
    evaluation: Evaluation,
    compute: Compute,
    prompts: Path,
    out: Path,
    adapter: Path | None,
    images: int,
    seed: int,
    start_over: bool = False,
) -> int:
    """Sample `images` pictures of every prompt of `prompts` into `out`; returns how many were drawn.

    Noise depends on (seed, prompt id, picture) alone, so checkpoints are compared at equal noise. Pictures that
    are already there are kept; `out/prompts.jsonl` is written last. Raises InputError when prompts, base or adapter are
    missing, or when `out` holds pictures of other weights, prompts or settings (they are removed to `start_over`).
    """
    records = read(prompts)
    generator = Generator(policy, compute=compute)
    checkpoint = "base"
    if adapter is not None:
        generator.load_adapter(adapter)
        checkpoint = str(adapter)
    schedule = make_schedule(generator.pipe.scheduler, evaluation.steps, 0.0)
    empty = generator.empty_prompt()
    encoded = generator.encode(records)
    if cut := cut_prompts(generator.tokenizers(), records):
        print(cut, file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    made_by = hashlib.sha256(f"{DRAWN_BY}{policy}{evaluation}{images}{seed}".encode() + prompts.read_bytes()).hexdigest()[:12]
    made_by = f"{checkpoint} {origin(policy, adapter)} {made_by}"
    source = out / "made_by.txt"
    if source.exists() and source.read_text() != made_by:
        if not start_over:
            raise InputError(
                f"{out}: holds pictures of other weights, prompts or settings; name another folder or --start-over"
            )
        shutil.rmtree(out)
        out.mkdir()
    source.write_text(made_by)

    wanted = []
    for number, record in enumerate(records):
        folder = _folder(out, number, record)
        wanted += [(number, k, folder / "samples" / f"{k:04d}.png") for k in range(images)]
    missing = [w for w in wanted if not w[2].exists()]
    bar = tqdm(total=len(missing), desc=f"sampling {checkpoint}", unit="image", mininterval=0.1 if sys.stderr.isatty() else 20)
    for start in range(0, len(missing), evaluation.batch):
        batch = missing[start : start + evaluation.batch]
        rows = torch.tensor([n for n, _, _ in batch])
        names = [(records[n].id, k) for n, k, _ in batch]
        pictures = draw(generator, encoded[rows], empty, schedule, names, seed)
        for picture, (n, k, path) in zip(pictures, batch, strict=True):
            _save_png(picture, path, seed=f"{seed}/{k}", prompt_id=records[n].id, checkpoint=checkpoint)
        bar.update(len(batch))
    bar.close()
    draft = out / ".prompts.tmp"
    draft.write_bytes(prompts.read_bytes())
    draft.replace(out / "prompts.jsonl")
    return len(missing)
