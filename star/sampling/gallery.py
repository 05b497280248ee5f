"""`star maps`: allocation maps drawn on the pictures as they form, and how well every block localises. Source: ours."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from star.allocation.columns import core_columns, cut_prompts
from star.allocation.maps import allocation_map, effective_area, entropy, localisation
from star.allocation.sources import Observation, contrast
from star.allocation.spread import token_shares
from star.config import Allocation, RunSettings
from star.errors import InputError
from star.flow.sampler import Trajectory, denoise
from star.flow.schedule import Schedule, make_schedule
from star.flow.seeding import noise
from star.models.adapter import load_adapter
from star.models.attention import Recorder
from star.models.door import FlowModel, load_model
from star.models.memory import spread
from star.prompts.record import Prompt, read
from star.worlds.door import world


def _spread(items: list[Prompt], count: int) -> list[Prompt]:
    """`count` prompts, one of every tag before a second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for i, item in enumerate(items):
        seen[item.tag] = seen.get(item.tag, 0) + 1
        ranked.append((seen[item.tag], i, item))
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
    _check_blocks(settings)
    records = _spread(read(prompts), count)
    model, schedule = _ready(settings, adapter, records, allocation.blocks)
    trajectory = _sampled(model, schedule, records, settings.allocation, seed)
    latents, raw_BTOhw = trajectory.latents_BSCHW, trajectory.raw_BTOhw.cpu()
    final = model.decode(latents[:, -1])
    regions = world(settings.prompts.world).regions(final, records)
    region_Bhw = None if regions is None else token_shares(regions, model.geometry.tokens)
    map_BTHW = _maps(settings, raw_BTOhw, region_Bhw, patch=model.geometry.patch, seed=seed)

    used = [t for t in range(steps) if schedule.sigma[t] > 0.01]
    pictures = []
    for t in tqdm(used, desc="maps", disable=None):
        v = (latents[:, t + 1] - latents[:, t]) / schedule.coef_v[t]
        pictures.append(model.decode(latents[:, t] - schedule.sigma[t] * v))

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
        label = "\n".join(textwrap.wrap(record.text, 18))
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


def measure(settings: RunSettings, prompts: Path, out: Path, adapter: Path | None, seed: int) -> pd.DataFrame:
    """Localisation gain of every block at every step over all prompts of a file; written to `out`/localisation.csv.

    One ODE sample a prompt. Columns: block, step, sigma, gain (see `star.allocation.maps.localisation`), n. Raises InputError
    as `draw` does, and outside the miniature, whose objects alone are known.
    """
    if world(settings.prompts.world).regions([]) is None:
        raise InputError(f"--localisation: nobody knows the true objects of {settings.prompts.world}")
    records = read(prompts)
    model, schedule = _ready(settings, adapter, records, ())
    every = len(model.blocks)
    allocation = settings.allocation.model_copy(update={"blocks": list(range(every))})
    model.watch(allocation.blocks, allocation.heads)
    settings = settings.model_copy(update={"allocation": allocation})
    raw_BTOhw, region_Bhw = _watch(model, schedule, records, settings, seed)
    n = int((region_Bhw.mean((-1, -2)) > 0).sum())
    table = pd.DataFrame(
        {"block": block, "step": t, "sigma": schedule.sigma[t].item(), "gain": gain, "n": n}
        for block in range(every)
        for t, gain in enumerate(localisation(raw_BTOhw[:, :, block], region_Bhw).nanmean(0).tolist())
    )
    return _written(table, out / "localisation.csv")


def measure_prompts(settings: RunSettings, prompts: Path, out: Path, adapter: Path | None, seed: int) -> pd.DataFrame:
    """How concentrated the method's maps are on every prompt of a file and step; written to `out`/map_statistics.csv.

    One ODE sample a prompt. Columns: prompt_id, tag, prompt, step, entropy, effective_area (see star.allocation.maps) and gain,
    the localisation gain (nan without objects). Raises InputError as `measure` does.
    """
    if world(settings.prompts.world).regions([]) is None:
        raise InputError(f"--by-prompt: nobody knows the true objects of {settings.prompts.world}")
    _check_blocks(settings)
    records = read(prompts)
    model, schedule = _ready(settings, adapter, records, settings.allocation.blocks)
    raw_BTOhw, region_Bhw = _watch(model, schedule, records, settings, seed)
    map_BTHW = _maps(settings, raw_BTOhw, region_Bhw, patch=model.geometry.patch, seed=seed)
    patch = model.geometry.patch
    gain_BT = localisation(map_BTHW[..., ::patch, ::patch], region_Bhw)
    rows = []
    for t in range(settings.rollout.steps):
        measured = zip(entropy(map_BTHW[:, t : t + 1]), effective_area(map_BTHW[:, t : t + 1]), gain_BT[:, t], strict=True)
        for record, values in zip(records, measured, strict=True):
            known = {"prompt_id": record.id, "tag": record.tag, "prompt": record.text, "step": t}
            rows.append(known | dict(zip(("entropy", "effective_area", "gain"), map(float, values), strict=True)))
    return _written(pd.DataFrame(rows), out / "map_statistics.csv")


def _check_blocks(settings: RunSettings) -> None:
    if contrast(settings.allocation.source):
        raise InputError(
            f"allocation.source: {settings.allocation.source} compares the rollouts of a group, and one picture a prompt has "
            "none; give a method whose maps are of attention"
        )
    if not settings.allocation.blocks:
        raise InputError("allocation.blocks: name the transformer blocks whose attention makes the maps")


def _ready(
    settings: RunSettings, adapter: Path | None, records: list[Prompt], blocks: Sequence[int]
) -> tuple[FlowModel, Schedule]:
    """The model with an adapter's weights, if any, its blocks ready to be recorded, and the noise levels of its ODE.

    Says which prompts are cut.
    """
    model = load_model(settings.policy, settings.compute)
    model.watch(blocks, settings.allocation.heads)
    if adapter is not None:
        load_adapter(model, adapter)
    spread(model, settings.compute, processes=1)
    if cut := cut_prompts(model.text_blocks(), records):
        print(cut, file=sys.stderr)
    return model, make_schedule(model.sigmas(settings.rollout.steps), noise_level=0.0)


def _maps(
    settings: RunSettings, raw_BTOhw: torch.Tensor, region_Bhw: torch.Tensor | None, *, patch: int, seed: int
) -> torch.Tensor:
    """The method's maps [B, T, H, W] of what was recorded; random ones from `seed`."""
    batch, steps, _, *tokens = raw_BTOhw.shape
    places_BThw = torch.randn((batch, steps, *tokens), generator=torch.Generator().manual_seed(seed))
    seen = Observation(batch, steps, tuple(tokens), patch=patch, raw_BTOhw=raw_BTOhw, region_Bhw=region_Bhw)
    return allocation_map(settings.allocation, seen, range(steps), places_BThw)


def _sampled(model: FlowModel, schedule: Schedule, records: list[Prompt], allocation: Allocation, seed: int) -> Trajectory:
    """One recorded ODE sample a prompt, with the noise of `star sample`'s first picture."""
    starts = torch.stack([noise((1, *model.geometry.latents), "test", seed, record.id, 0) for record in records])
    heads = None if allocation.heads is None else tuple(allocation.heads)
    recorder = Recorder(core_columns(model, records, allocation.tokens), tuple(allocation.blocks), heads)
    text = model.encode([record.text for record in records])
    return denoise(model, starts, text=text, schedule=schedule, recorder=recorder)


def _watch(
    model: FlowModel, schedule: Schedule, records: list[Prompt], settings: RunSettings, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One ODE sample a prompt: raw attention [B, T, O, h, w], and every token's share of true objects [B, h, w]."""
    raw, shares, batch = [], [], settings.evaluation.batch
    for start in tqdm(range(0, len(records), batch), desc="watching", disable=None):
        drawn = records[start : start + batch]
        trajectory = _sampled(model, schedule, drawn, settings.allocation, seed)
        raw.append(trajectory.raw_BTOhw.cpu())
        masks = world(settings.prompts.world).regions(model.decode(trajectory.latents_BSCHW[:, -1]), drawn)
        shares.append(token_shares(masks, model.geometry.tokens))
    return torch.cat(raw), torch.cat(shares)


def _written(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    table.to_csv(draft, index=False)
    draft.replace(path)
    return table
