"""Stage: sampling. Images of a checkpoint on a prompt file, in GenEval's official layout, by the Euler ODE."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from star import code
from star.allocation.columns import cut_prompts
from star.config import Config
from star.config.key import digest, sampling_key
from star.errors import InputError
from star.files import sha256, write_text
from star.flow.sampler import denoise
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import noise
from star.layout import ADAPTER_FILE
from star.models.adapter import load_adapter
from star.models.door import FlowModel, Text, load_model
from star.prompts.record import Prompt, read
from star.runtime import pick_precision


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


def draw(model: FlowModel, text: Text, *, schedule: Schedule, names: list[tuple[str, int]], seed: int) -> list[np.ndarray]:
    """Pictures uint8 [height, width, 3] of encoded prompts by the ODE; (prompt id, picture) and `seed` name the noise."""
    starts = torch.stack([noise((1, *model.geometry.latents), "test", seed, *name) for name in names])
    return model.decode(denoise(model, starts, text=text, schedule=schedule).latents_BSCHW[:, -1])


def _remove_pictures(out: Path) -> None:
    """Remove what `sample` writes, and nothing else: prompts.jsonl, and every prompt's metadata and numbered pictures."""
    (out / "prompts.jsonl").unlink(missing_ok=True)
    for folder in out.glob("[0-9][0-9][0-9][0-9][0-9]"):
        for picture in (folder / "samples").glob("[0-9][0-9][0-9][0-9].png"):
            picture.unlink()
        (folder / "metadata.jsonl").unlink(missing_ok=True)
        for emptied in (folder / "samples", folder):
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()


def sample(
    config: Config,
    prompts: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    seed: int = 0,
    start_over: bool = False,
) -> int:
    """Sample `evaluation.images_per_prompt` pictures of every prompt of `prompts` into `out`; returns how many were drawn.

    Noise depends on (seed, prompt id, picture) alone, so checkpoints are compared at equal noise. Pictures that
    are already there are kept; `out/prompts.jsonl` is written last. Raises InputError when prompts, base or adapter are
    missing, or when `out` holds pictures of other weights, prompts or settings. To `start_over` these are removed: what this
    stage itself has written can be drawn again. Other files in `out` stay.
    """
    evaluation, images, records = config.evaluation, config.evaluation.images_per_prompt, read(prompts)
    model = load_model(config.policy, config.compute)
    checkpoint = "base"
    if adapter is not None:
        load_adapter(model, adapter)
        checkpoint = str(adapter)
    schedule = make_schedule(model.sigmas(evaluation.steps), noise_level=0.0)
    text = model.encode([record.text for record in records])
    if cut := cut_prompts(model.text_blocks(), records):
        print(cut, file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [sha256(prompts), None if adapter is None else sha256(adapter / ADAPTER_FILE), images, seed]
    made_by = f"{checkpoint} {digest([sampling_key(config), str(pick_precision(config.policy)), *drawn])}"
    source = out / "made_by.txt"
    if source.exists() and source.read_text(encoding="utf-8") != made_by:
        if not start_over:
            raise InputError(
                f"{out}: holds pictures of other weights, prompts or settings; name another folder or --start-over"
            )
        _remove_pictures(out)
    write_text(source, made_by)

    wanted = []
    for number, record in enumerate(records):
        folder = _folder(out, number, record)
        wanted += [(number, k, folder / "samples" / f"{k:04d}.png") for k in range(images)]
    missing = [w for w in wanted if not w[2].exists()]
    if missing:
        code.record(out, "star.sampling.sample", fresh=len(missing) == len(wanted))
    bar = tqdm(total=len(missing), desc=f"sampling {checkpoint}", unit="image", mininterval=0.1 if sys.stderr.isatty() else 20)
    for start in range(0, len(missing), evaluation.batch):
        batch = missing[start : start + evaluation.batch]
        rows = torch.tensor([n for n, _, _ in batch])
        names = [(records[n].id, k) for n, k, _ in batch]
        pictures = draw(model, text[rows], schedule=schedule, names=names, seed=seed)
        for picture, (n, k, path) in zip(pictures, batch, strict=True):
            _save_png(picture, path, seed=f"{seed}/{k}", prompt_id=records[n].id, checkpoint=checkpoint)
        bar.update(len(batch))
    bar.close()
    draft = out / ".prompts.tmp"
    draft.write_bytes(prompts.read_bytes())
    draft.replace(out / "prompts.jsonl")
    return len(missing)
