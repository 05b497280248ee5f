"""`star maps`: allocation maps over the denoising steps, drawn on the pictures as they form. Source: ours."""

import textwrap
from pathlib import Path

import torch
from tqdm import tqdm

from star.allocation.maps import allocation_map
from star.config import RunSettings
from star.errors import InputError
from star.policy.generator import Generator
from star.policy.sde import make_schedule
from star.policy.seeding import noise
from star.prompts import read


def _spread(items: list[dict], count: int) -> list[dict]:
    """`count` prompts, one of every tag before a second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for i, item in enumerate(items):
        seen[item["tag"]] = seen.get(item["tag"], 0) + 1
        ranked.append((seen[item["tag"]], i, item))
    return [item for _, _, item in sorted(ranked, key=lambda r: r[:2])[:count]]


def draw(settings: RunSettings, prompts: Path, out: Path, adapter: Path | None, count: int, seed: int) -> Path:
    """Draw `count` prompts of a file, a row each: map over picture estimate at every step, then the picture.

    Writes maps.svg and maps.png into `out` and returns the PNG. The pictures are ODE samples with the noise of
    `star sample`, the maps those that STAR would use there. Raises InputError as `star sample` does, and when the method has
    no attention blocks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    allocation, steps = settings.allocation, settings.rollout.steps
    if not allocation.blocks:
        raise InputError("allocation.blocks: name the transformer blocks whose attention makes the maps")
    records = _spread(read(prompts), count)
    generator = Generator(settings.policy, allocation.blocks)
    if adapter is not None:
        generator.load_adapter(adapter)
    schedule = make_schedule(generator.pipe.scheduler, steps, 0.0)
    shape = (1, *generator.latent_shape())
    starts = torch.stack([noise(shape, "test", seed, r["id"], 0) for r in records])
    trajectory = generator.sample(starts, generator.encode(records), generator.empty_prompt(), schedule, record=True)
    map_BTHW = allocation_map(
        trajectory.raw_BThw, smoothing=allocation.smoothing, sharpness=allocation.sharpness, floor=allocation.floor
    )
    latents = trajectory.latents_BSCHW

    used = [t for t in range(steps) if schedule.sigma[t] > 0.01]
    pictures = []
    for t in tqdm(used, desc="maps", disable=None):
        v = (latents[:, t + 1] - latents[:, t]) / schedule.coef_v[t]
        pictures.append(generator.decode(latents[:, t] - schedule.sigma[t] * v))
    final = generator.decode(latents[:, -1])

    columns = len(used) + 1
    figure, axes = plt.subplots(
        len(records), columns, figsize=(1.2 * columns + 2.4, 1.25 * len(records) + 0.9), squeeze=False, layout="constrained"
    )
    heat = None
    top = float(map_BTHW[:, used].max())
    for row, record in enumerate(records):
        for column, t in enumerate(used):
            axis = axes[row, column]
            size = final[row].shape[:2]
            axis.imshow(pictures[column][row], extent=(0, size[1], size[0], 0))
            weights = map_BTHW[row, t].cpu().numpy()
            heat = axis.imshow(
                weights,
                cmap="magma",
                alpha=0.6,
                vmin=0,
                vmax=top,
                extent=(0, size[1], size[0], 0),
                interpolation="bilinear",
            )
            if row == 0:
                axis.set_title(f"step {t + 1}\nσ = {schedule.sigma[t]:.2f}", fontsize=8)
        axes[row, -1].imshow(final[row])
        label = "\n".join(textwrap.wrap(record["prompt"], 18))
        axes[row, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center", labelpad=8)
    axes[0, -1].set_title("picture", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    bar = figure.colorbar(heat, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("allocation weight M (mean 1)", fontsize=8)
    blocks = ", ".join(map(str, allocation.blocks))
    figure.suptitle(f"Where the update goes: allocation maps from attention block {blocks}", fontsize=10)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("maps.svg", "maps.png"):
        draft = out / f".{name}"
        figure.savefig(draft, format=name[-3:], dpi=130)
        draft.replace(out / name)
    plt.close(figure)
    return out / "maps.png"
