"""Stage: export. A folder to hand on: the adapter at its full strength, a model card in the hub's format, settings, pictures.

    README.md                            card: YAML front matter, use, pictures, scores with intervals, guards, training
    pytorch_lora_weights.safetensors     a standard diffusers LoRA with alpha = rank
    settings.json                        every setting of the run
    images/0-base.png, images/0.png      the same prompt and noise before and after

What a run has not (scores, guards, pictures, the base's) the card leaves out.
"""

import json
import math
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from jinja2 import Environment, StrictUndefined
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from star.analysis import statistics
from star.analysis.results import comparable, read_guards, read_scores
from star.config import PolicySettings
from star.errors import InputError
from star.files import read_jsonl, write_text
from star.hub.check import is_repository
from star.layout import ADAPTER_FILE, Run, epoch_of
from star.models.adapter import at_full_strength
from star.scoring import pictures, samples

_SHOWN = 6  # prompts
_SMALL, _LARGE = 192, 768  # pixels: smaller pictures are enlarged by a whole factor, larger ones are reduced
_HEADER = "lora_adapter_metadata"  # where diffusers keeps rank and alpha
_PREFIX = "transformer."
_NOT_TRAINING = {"policy", "compute", "scorers", "evaluation", "task", "method"}  # what the card says elsewhere, or not


class Source(NamedTuple):
    """An adapter's folder; the run and the epoch that it is from, None where it lies outside a run."""

    adapter: Path
    run: Run | None
    epoch: int | None


class Shown(NamedTuple):
    """A prompt of the card with its pictures, as paths inside the folder; `before` is None without the base's."""

    prompt: str
    before: str | None
    after: str


class Card(NamedTuple):
    """What was written: the pictures, the factor that went into the weights, what a person must settle before publishing."""

    shown: list[Shown]
    factor: float
    notes: list[str]


def of_run(folder: Path) -> Source:
    """The last adapter of a run. Raises InputError when there is none."""
    run = Run(folder)
    epochs = [
        n for n in map(epoch_of, run.checkpoints.glob("epoch*")) if n is not None and (run.adapter(n) / ADAPTER_FILE).exists()
    ]
    if not epochs:
        raise InputError(f"{run.checkpoints}: no adapters; name a trained run's folder, or an adapter with --adapter")
    return Source(run.adapter(max(epochs)), run, max(epochs))


def of_adapter(folder: Path) -> Source:
    """An adapter, and the run that its folder is part of, if any. Raises InputError when there is none."""
    if not (folder / ADAPTER_FILE).exists():
        raise InputError(f"{folder}: no {ADAPTER_FILE}; name the adapter/ folder of a checkpoint")
    checkpoint = folder.absolute().parent
    run = Run(checkpoint.parent.parent)
    if checkpoint.parent != run.checkpoints or not run.settings.exists():
        return Source(folder, None, None)
    return Source(folder, run, epoch_of(checkpoint))


def write(source: Source, out: Path, policy: PolicySettings, base: str | None = None) -> Card:
    """Write the folder `out` whole. `policy` names the base of an adapter outside a run; `base` is its repository on the hub.

    Raises InputError when `out` is not empty, when the adapter is not one of a transformer, or when settings or scores of
    the run cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name a new folder")
    if base is not None and not is_repository(base):
        raise InputError(f"--base: {base} is not a repository's name; give it as owner/name")
    settings = _settings(source.run) if source.run else None
    drawing = settings["policy"] if settings else policy.model_dump(mode="json")
    weights, header, factor = at_strength(source.adapter / ADAPTER_FILE)
    scores = _scores(source, settings) if settings else []
    guards = _guards(source) if settings else []

    # into a draft, renamed when all is there
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "images").mkdir(parents=True)
    if factor == 1:
        shutil.copyfile(source.adapter / ADAPTER_FILE, draft / ADAPTER_FILE)
    else:
        save_file(weights, draft / ADAPTER_FILE, metadata=header)
    if source.run:
        shutil.copyfile(source.run.settings, draft / "settings.json")
    shown = _pictures(source, settings["task"], draft) if settings else []
    licence, notes = licence_of(drawing, base)
    data = _front_matter(_hub_base(drawing["model"], base), licence, shown)
    body = _body(out.name, source, settings, drawing, {"scores": scores, "guards": guards, "shown": shown, "notes": notes})
    write_text(draft / "README.md", str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")))
    if not any((draft / "images").iterdir()):
        (draft / "images").rmdir()
    if out.exists():
        out.rmdir()
    draft.replace(out)
    return Card(shown, factor, notes)


def at_strength(file: Path) -> tuple[dict[str, Any], dict[str, str], float]:
    """(weights, header, factor): an adapter's file with alpha = rank, and what its lora_B was multiplied by for that.

    Raises InputError when the weights are not a transformer's, or their strength differs between layers.
    """
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        header = dict(opened.metadata() or {})
    if foreign := [name for name in weights if not name.startswith(_PREFIX) or ".lora_" not in name]:
        raise InputError(f"{file}: weights {foreign[:2]} are not of a transformer's LoRA; export an adapter of `star train`")
    if _HEADER not in header:
        return weights, header, 1.0  # what every tool takes for alpha = rank
    named = json.loads(header[_HEADER])
    metadata = {key.removeprefix(_PREFIX): value for key, value in named.items() if key.startswith(_PREFIX)}
    for key in ("alpha_pattern", "rank_pattern", "use_rslora"):
        if metadata.get(key):
            raise InputError(f"{file}: {key} is set, so layers differ in strength; export an adapter of `star train`")
    folded, full = at_full_strength(weights, metadata)
    header[_HEADER] = json.dumps(named | {f"{_PREFIX}{key}": value for key, value in full.items()}, indent=2, sort_keys=True)
    return folded, header, metadata["lora_alpha"] / metadata["r"]


def _settings(run: Run) -> dict:
    try:
        settings = json.loads(run.settings.read_text(encoding="utf-8"))
        settings["policy"]["model"], settings["task"], settings["method"], settings["report"][0]
    except FileNotFoundError:
        raise InputError(
            f"{run.settings}: missing; name a run's folder, or its adapter copied elsewhere with --adapter"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{run.settings}: not a run's settings ({error!r}); write them again with `star train`") from None
    return settings


def _base_run(run: Run) -> Run:
    """The untrained model's test beside a run: <task>/base/seed<k>."""
    return Run(run.folder.absolute().parent.parent / "base" / run.folder.absolute().name)


def _scores(source: Source, settings: dict) -> list[dict]:
    """Rows of the card's table of scores: name, then mean, ci_low, ci_high and n."""
    if source.epoch is None or not (path := source.run.scores(source.epoch)).exists():
        return []
    scorer, own = settings["report"][0], read_scores(path)
    rows = [{"name": "this adapter"} | statistics.summary(scorer, own)]
    before = _base_run(source.run).scores(0)
    if before.exists():
        base = read_scores(before)
        comparable(before, base, path, own)
        paired = statistics.difference(scorer, own.assign(seed=0), base.assign(seed=0))
        rows = [{"name": "base"} | statistics.summary(scorer, base), *rows, {"name": "difference, paired"} | paired]
    return [row | {"scorer": own["scorer"].iloc[0]} for row in rows]


def _guards(source: Source) -> list[dict]:
    """Rows of the card's table of guards: guard, before (None without the base's), after."""
    if source.epoch is None or not (path := source.run.guards(source.epoch)).exists():
        return []
    before = _base_run(source.run).guards(0)
    of_base = {name: value for name, value, *_ in read_guards(before)} if before.exists() else {}
    return [{"guard": name, "before": of_base.get(name), "after": value} for name, value, *_ in read_guards(path)]


def _pictures(source: Source, task: str, draft: Path) -> list[Shown]:
    """Copy picture 0 of prompts that lie evenly in the test set ordered by tag and id: no choice by score."""
    if source.epoch is None or not (folder := source.run.samples(source.epoch)).exists():
        return []
    after = {s.record.id: s for s in samples.find(folder, task) if s.number == 0}
    folder = _base_run(source.run).samples(0)
    before = {s.record.id: s for s in samples.find(folder, task) if s.number == 0} if folder.exists() else {}
    ordered = sorted(after, key=lambda name: (after[name].record.tag, name))
    count = min(_SHOWN, len(ordered))
    chosen = [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]
    shown = []
    for i, name in enumerate(chosen):
        paths = {"after": f"images/{i}.png"} | ({"before": f"images/{i}-base.png"} if name in before else {})
        for side, path in paths.items():
            _sized(pictures.read({"after": after, "before": before}[side][name].path)).save(draft / path)
        shown.append(Shown(after[name].record.text, paths.get("before"), paths["after"]))
    return shown


def _sized(pixels: Any) -> Image.Image:
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest < _SMALL:
        factor = -(-_SMALL // longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((_LARGE, _LARGE), Image.Resampling.LANCZOS)
    return picture


def _hub_base(model: str, base: str | None) -> str | None:
    """The base's repository, or None where only a folder is known: the hub refuses a card with a path as base."""
    return base or (model if is_repository(model) else None)


def licence_of(drawing: dict, base: str | None) -> tuple[dict[str, str], list[str]]:
    """The base's licence as its own card has it, under the hub's keys, and what a person must settle before publishing."""
    model, notes = drawing["model"], []
    if _hub_base(model, base) is None:
        notes.append("name the base's repository with --base, if it has one; the hub takes no path for `base_model`")
    folder = Path(model)
    card = (
        folder / "README.md"
        if folder.is_dir()
        else try_to_load_from_cache(model, "README.md", revision=drawing.get("revision"))
    )
    found: dict[str, str] = {}
    if isinstance(card, str | Path) and Path(card).is_file():
        text = Path(card).read_text(encoding="utf-8")
        data = ModelCard(text, ignore_metadata_errors=True).data if text.startswith("---") else {}
        found = {key: data.get(key) for key in ("license", "license_name", "license_link") if data.get(key)}
    if "license" not in found:
        found = {"license": "other", "license_name": "as-the-base"}
        notes.append("the base's licence is not known here; set `license` in README.md to it")
    elif (
        found["license"] == "other" and "license_link" in found and "://" not in found["license_link"] and is_repository(model)
    ):
        found["license_link"] = f"https://huggingface.co/{model}/blob/main/{found['license_link']}"
    return found, notes


def _front_matter(base: str | None, licence: dict[str, str], shown: list[Shown]) -> ModelCardData:
    widget = [{"text": each.prompt, "output": {"url": each.after}} for each in shown]
    more = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    return ModelCardData(
        **licence,
        **more,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "lora", "reinforcement-learning", "flow-matching", "star"],
        widget=widget or None,
    )


def _training(source: Source) -> dict[str, float | str | None]:
    """What metrics.jsonl and environment.json say: epochs, images, hours, reward at the start and the end, machine."""
    rows = read_jsonl(source.run.metrics) if source.run.metrics.exists() else []
    if source.epoch is not None:
        rows = [row for row in rows if row["epoch"] <= source.epoch]
    if not rows:
        return {}
    machine = json.loads(source.run.environment.read_text(encoding="utf-8")) if source.run.environment.exists() else {}
    return {
        "epochs": len(rows),
        "images": sum(row["images"] for row in rows),
        "hours": sum(value for row in rows for key, value in row.items() if key.startswith("seconds_")) / 3600,
        "reward_first": rows[0]["reward_mean"],
        "reward_last": rows[-1]["reward_mean"],
        "machine": machine.get("gpu") or machine.get("cpu"),
    }


def _limits(row: dict) -> str:
    return "–" if math.isnan(row["ci_low"]) else f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _size(settings: dict | None, drawing: dict) -> tuple[int, int]:
    """(height, width) of the pictures of its test."""
    tested = (settings or {}).get("evaluation", {}).get("resolution") or drawing["resolution"]
    return tuple(tested) if isinstance(tested, list) else (tested, tested)


def _body(name: str, source: Source, settings: dict | None, drawing: dict, parts: dict[str, list]) -> str:
    kept = {key: value for key, value in (settings or {}).items() if key not in _NOT_TRAINING}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["cell"] = lambda text: re.sub(r"\s+", " ", text).replace("|", "\\|")
    environment.filters["python"] = json.dumps
    environment.filters["limits"] = _limits
    seed = re.fullmatch(r"seed(\d+)", source.run.folder.absolute().name) if source.run else None
    template = environment.from_string(files("star.export").joinpath("card.md.j2").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        policy=drawing,
        size=_size(settings, drawing),
        settings=settings,
        steps=settings["evaluation"]["steps"] if settings else None,
        training=_training(source) if settings else {},
        epoch=source.epoch,
        seed=seed and int(seed[1]),
        sections=yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100),
        **parts,
    )
