"""Stage: sampling. Images of checkpoints on a prompt file, in GenEval's official layout, by the Euler ODE."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from star import code
from star.allocation.columns import cut_prompts
from star.config import Config, Evaluation, evaluated_policy
from star.config.key import digest, sampling_key
from star.errors import InputError
from star.files import require_free, sha256, write_bytes, write_text
from star.flow.sampler import denoise
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import noise
from star.models.adapter import adapter_file, use_adapter
from star.models.door import FlowModel, Text, load_model
from star.models.memory import spread
from star.prompts.record import Prompt, read
from star.runtime import pick_precision

_END = b"\0\0\0\0IEND\xaeB`\x82"  # of every PNG
_OF_RAW = 0.5  # what PNG leaves of a picture's bytes at least, were it a photograph


def _save_png(picture: object, path: Path, **texts: str) -> None:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    draft = path.with_suffix(".tmp")
    Image.fromarray(picture).save(draft, "PNG", pnginfo=info)
    draft.replace(path)


def _is_whole(path: Path) -> bool:
    """Whether a picture is there to its end; a power cut can leave its name alone."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_END)))
        return file.read() == _END


def _pictures(out: Path, prompts: int, images: int) -> list[tuple[int, int, Path]]:
    """(prompt, picture, file) of all pictures that belong into a folder."""
    return [(n, k, out / f"{n:05d}" / "samples" / f"{k:04d}.png") for n in range(prompts) for k in range(images)]


def _write_metadata(out: Path, number: int, record: Prompt) -> None:
    """Make the prompt's folder with its official metadata line."""
    folder = out / f"{number:05d}"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    metadata = {**record.metadata, **{k: v for k, v in record.as_dict().items() if k in ("prompt", "id", "task", "core")}}
    (folder / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")


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
    """Sample the pictures of one checkpoint, as `sample_checkpoints` does; without an adapter the base's."""
    return sample_checkpoints(config, prompts, {out: adapter}, seed=seed, start_over=start_over)


def sample_checkpoints(
    config: Config, prompts: Path, adapters: Mapping[Path, Path | None], *, seed: int = 0, start_over: bool = False
) -> int:
    """Sample `evaluation.images_per_prompt` pictures of every prompt of `prompts` into every folder of `adapters`.

    A folder's pictures are drawn under its adapter, None for the base. Base and prompts are loaded and encoded once. Returns
    how many pictures were drawn. Noise depends on (seed, prompt id, picture) alone, so checkpoints are compared at equal noise.
    Pictures that are already there are kept; `prompts.jsonl` in a folder is written last. Raises InputError when prompts, base
    or an adapter are missing, when the disk has no room for the pictures, or when a folder holds pictures of other weights,
    prompts or settings: before any is drawn. To `start_over` these are removed: what this stage itself has written can be drawn
    again. Other files in a folder stay.
    """
    records, evaluation = read(prompts), config.evaluation

    # What each folder's pictures are made by, and whether it holds those of something else.
    made_by = {}
    for out, adapter in adapters.items():
        checkpoint = "base" if adapter is None else str(adapter)
        weights = None if adapter is None else sha256(adapter_file(adapter))
        drawn = [sha256(prompts), weights, evaluation.images_per_prompt, seed]
        made_by[out] = f"{checkpoint} {digest([sampling_key(config), str(pick_precision(config.policy)), *drawn])}"
    others = [out for out in adapters if _holds_others(out, made_by[out])]
    if others and not start_over:
        raise InputError(
            f"{others[0]}: holds pictures of other weights, prompts or settings; name another folder or --start-over"
        )
    for out in others:
        _remove_pictures(out)
    wanted = [w for out in adapters for w in _pictures(out, len(records), evaluation.images_per_prompt)]
    missing = sum(not _is_whole(file) for _, _, file in wanted)
    raw = 3 * math.prod(evaluated_policy(config).size)
    require_free(next(iter(adapters)), missing * raw * _OF_RAW, f"{missing} pictures, by estimate")

    # Base and prompts, once.
    model = load_model(evaluated_policy(config), config.compute)
    spread(model, config.compute, processes=1)
    drawing = _Drawing(model, make_schedule(model.sigmas(evaluation.steps), noise_level=0.0), records, evaluation, seed)
    text = model.encode([record.text for record in records])
    if cut := cut_prompts(model.text_blocks(), records):
        print(cut, file=sys.stderr)

    # Every checkpoint's pictures.
    count = 0
    for out, adapter in adapters.items():
        use_adapter(model, adapter)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "made_by.txt", made_by[out])
        count += _draw_missing(drawing, text, out, "base" if adapter is None else str(adapter))
        write_bytes(out / "prompts.jsonl", prompts.read_bytes())
    return count


def _holds_others(out: Path, made_by: str) -> bool:
    source = out / "made_by.txt"
    return source.exists() and source.read_text(encoding="utf-8") != made_by


class _Drawing(NamedTuple):
    """What the checkpoints' pictures share."""

    model: FlowModel
    schedule: Schedule
    records: list[Prompt]
    evaluation: Evaluation
    seed: int


def _draw_missing(drawing: _Drawing, text: Text, out: Path, checkpoint: str) -> int:
    """Draw the pictures that `out` lacks under the adapter in use; returns how many."""
    model, schedule, records, evaluation, seed = drawing
    for number, record in enumerate(records):
        _write_metadata(out, number, record)
    wanted = _pictures(out, len(records), evaluation.images_per_prompt)
    missing = [w for w in wanted if not _is_whole(w[2])]
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
    return len(missing)
