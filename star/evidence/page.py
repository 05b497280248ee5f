"""Stage `evidence`: collected runs as tables, one figure a question, and a page that shows both and concludes nothing.

Conclusions are written by a person, on a page of their own; quotes.py checks the numbers that it quotes against the tables.
"""

import json
import math
from pathlib import Path

import pandas as pd

from star.analysis import comparisons, tables, text
from star.analysis.statistics import SEED_RESAMPLES
from star.config import Config, main_scorer, methods_of, run_settings
from star.evidence import data
from star.evidence.data import Data
from star.evidence.questions import ATTRIBUTES, COST, GUARDS, MAIN, QUESTIONS, Question, attribute_task, families, letters
from star.files import write_text

Tables = dict[str, pd.DataFrame]
_INTRODUCTION = (
    "*Made by `star evidence` from the collected runs of the experiment `{experiment}`. It shows numbers and concludes "
    "nothing. The tables behind it are `tables/*.csv` beside it.*"
)
_HOW_TO_READ = (
    f"- Intervals of scores and differences are 95 %, from {SEED_RESAMPLES} resamples of training seeds and test prompts "
    "together. They say what another seed *and* other prompts of the same kind would give. They are too wide where the noise "
    "of single pictures dominates.",
    "- The mixed model (random seeds, random prompts) gives the second interval and p. *Corrected p* is Holm's, over the "
    "{main} main comparisons and, apart from these, over the {questions} others.",
    "- An interval that holds zero is no proof of equality. It says how large a difference may be and stay unseen.",
    "- The mean height of the learning curve is the area under the test score over the epochs, divided by their number.",
    "- Intervals of cost, guards and diagnostics are over seeds alone (Student's t).",
)
_LEARNING = "Epochs until half of what `flow_grpo` gains, on straight lines between the scored checkpoints:"
_DIAGNOSTICS = (
    "Means over the epochs of a training. `map_localisation`: map mass inside the true objects over their share of the area "
    "(1 is chance). `gradient_inside`: share of the squared gradient inside them, to be compared with `object_area`, which is "
    "what the scalar objective puts there."
)
_FAILURES = (
    "Shares of all test images, by the first of these that holds: fewer objects than asked for (`absent`), more (`surplus`), a "
    "wrong colour, a wrong place."
)
_NOT_MEASURED = "Not measured."


def collect(config: Config, folder: Path) -> None:
    """Keep the finished runs of an experiment small in `folder`, and print which are missing. Raises InputError (data.py)."""
    written, missing = data.collect(config, folder)
    for path in missing:
        print(f"not collected: {path} is missing")
    size = sum(path.stat().st_size for path in folder.glob("*.json.gz")) / 1e6
    print(f"{len(written)} of {len(written) + len(missing)} runs collected; {folder} has {size:.2f} MB")


def write(config: Config, folder: Path, out: Path) -> None:
    """Write `out`/tables.md, `out`/tables/*.csv and `out`/figures/*.svg from collected runs.

    Raises InputError, before anything is written, when the runs cannot be compared; see data.read.
    """
    collected = data.read(config, folder)
    frames = measure(collected)
    for name, table in frames.items():
        text.save_csv(out / "tables" / f"{name}.csv", table)
    draw(out / "figures", collected.config, frames)
    write_text(out / "tables.md", page(collected, frames))


def measure(collected: Data) -> Tables:
    """Every table of the evidence, by the name of its file."""
    config, scores, guards, metrics = collected.config, collected.scores, collected.guards, collected.metrics
    pairs = families()
    frames = {
        "comparisons": _with_letters(comparisons.comparisons(config, scores, pairs)),
        "by_seed": comparisons.by_seed(config, scores, pairs),
        "learning": comparisons.learning(config, scores),
        "thresholds": comparisons.thresholds(config, scores),
        "cost_ratios": tables.cost_ratios(config, metrics),
        "cost": tables.cost(config, metrics),
        "guards_at_equal_score": comparisons.guards_at_equal_score(config, scores, guards),
        "guard_paths": comparisons.guard_paths(config, scores, guards),
        "diagnostics": tables.diagnostics(config, metrics),
        "localisation": tables.localisation(config, metrics),
        "trainings": tables.trainings(metrics, collected.machines),
        "failures": comparisons.failures(config, scores),
    }
    if collected.attributes is not None:
        frames["attributes"] = comparisons.attributes(*collected.attributes)
    return frames


def _with_letters(table: pd.DataFrame) -> pd.DataFrame:
    pairs = zip(table["method"], table["reference"], strict=True)
    table.insert(1, "letters", [letters(pair) for pair in pairs])
    return table


def _answered(config: Config, frames: Tables) -> list[Question]:
    """The questions that the tables can answer."""

    def answers(question: Question) -> bool:
        if question is ATTRIBUTES:
            return "attributes" in frames
        return question in (COST, GUARDS) or bool(comparisons.by_task(config, frames["comparisons"], question.pairs))

    return [question for question in QUESTIONS if answers(question)]


def draw(folder: Path, config: Config, frames: Tables) -> None:
    """Write `folder`/main.svg, and <question>.svg for every question that the tables can answer."""
    from matplotlib import pyplot as plt

    from star.analysis import comparison_figures as figures
    from star.analysis.style import STYLE, save

    with plt.rc_context(STYLE):
        save(figures.main(config, frames, MAIN), folder / "main.svg")
        for question in _answered(config, frames):
            if question is COST:
                figure = figures.cost(config, frames, question.heading)
            elif question is GUARDS:
                figure = figures.guards(config, frames, question.heading)
            elif question is ATTRIBUTES:
                figure = figures.attributes(config, frames, question.heading, attribute_task(config))
            else:
                shown = {"diagnostics": question.diagnostics, "by_step": question.by_step}
                figure = figures.differences(config, frames, question.heading, question.pairs, **shown)
            save(figure, folder / f"{question.name}.svg")


# The page of tables.


def page(collected: Data, frames: Tables) -> str:
    """The Markdown of tables.md."""
    config = collected.config
    family = frames["comparisons"]["family"]
    counts = {"main": (family == "main").sum(), "questions": (family == "questions").sum()}
    parts = [f"# Tables of {config.experiment}", _INTRODUCTION.format(experiment=config.experiment)]
    parts += ["## What was run", *_what_was_run(collected, frames)]
    parts += ["## How to read it", "\n".join(_HOW_TO_READ).format(**counts)]
    parts += ["## Main comparisons", _comparisons(config, frames, MAIN), "![Main comparisons](figures/main.svg)"]
    parts += [_LEARNING, _thresholds(frames)]
    answered = _answered(config, frames)
    for question in QUESTIONS:
        parts.append(f"## {question.heading}")
        if question not in answered:
            parts.append(_NOT_MEASURED)
            continue
        parts += [question.about, _answer(config, frames, question), f"![{question.title}](figures/{question.name}.svg)"]
    parts += ["## Diagnostics", _DIAGNOSTICS, *_diagnostics(frames["diagnostics"])]
    if len(frames["failures"]):
        cells = text.intervals(frames["failures"], 3)
        parts += ["## Failures", _FAILURES, _wide(frames["failures"], ["task", "method"], "failure", cells)]
    return "\n\n".join(parts) + "\n"


def _what_was_run(collected: Data, frames: Tables) -> list[str]:
    asked, config = collected.asked, collected.config
    trainings = frames["trainings"]
    seeds_of = trainings.groupby(["task", "method"])["seed"].nunique()
    rows, missing = [], []
    for task in asked.tasks:
        found = {method: int(seeds_of.get((task, method), 0)) for method in methods_of(asked, task)}
        absent = [f"{method} ({len(asked.seeds) - n})" for method, n in found.items() if n < len(asked.seeds)]
        if absent:
            missing.append(
                f"Not measured, though the configuration asks for it, on {task} (seeds that are missing): {', '.join(absent)}."
            )
        if task in config.tasks:
            trained = ", ".join(f"{method} ({n})" for method, n in found.items() if n)
            rows.append({"task": task, "methods (seeds)": trained} | _budget(config, frames["learning"], task))
    seeds = ", ".join(map(str, config.seeds))
    counted = f"{len(trainings)} trainings with the seeds {seeds}; the untrained model is tested beside them."
    table = text.markdown(pd.DataFrame(rows).astype(str))
    return [counted, table, *missing, "\n".join(_machines(trainings)), "\n".join(_methods(config))]


def _budget(config: Config, learning: pd.DataFrame, task: str) -> dict[str, object]:
    """What the methods of a task have in common."""
    settings = run_settings(config, task, methods_of(config, task)[0])
    first = learning[learning["task"] == task].iloc[0]
    return {
        "scorer": main_scorer(config, task),
        "learning rate": _learning_rates(config, task),
        "epochs": settings.training.epochs,
        "images an epoch": settings.rollout.groups * settings.rollout.group_size,
        "test images a seed": first["images"] // first["seeds"],
    }


def _learning_rates(config: Config, task: str) -> str:
    """The most common learning rate first, the others with the methods that have them."""
    methods_with: dict[float, list[str]] = {}
    for method in methods_of(config, task):
        methods_with.setdefault(run_settings(config, task, method).optimizer.learning_rate, []).append(method)
    common, *others = sorted(methods_with, key=lambda rate: -len(methods_with[rate]))
    return "; ".join([f"{common:g}", *(f"{rate:g} ({', '.join(methods_with[rate])})" for rate in others)])


def _machines(trainings: pd.DataFrame) -> list[str]:
    """Machines with their number of trainings and hours."""
    columns = ["cpu", "cores", "memory_gib", "gpu", "torch"]
    lines = []
    for (cpu, cores, memory, gpu, torch), runs in trainings.fillna({"gpu": "none"}).groupby(columns, sort=False):
        hours = runs["seconds"].sum() / 3600
        lines.append(
            f"- {len(runs)} trainings, {hours:.1f} hours (sum of the wall clocks of the jobs, some of them side by side): "
            f"{cpu}, {cores} cores, {memory} GiB, GPU {gpu}, torch {torch}."
        )
    return lines


def _methods(config: Config) -> list[str]:
    """What the configuration says of every method."""
    lines = []
    for name, method in config.methods.items():
        changes = method.model_dump(exclude={"tasks"}, exclude_defaults=True, mode="json")
        lines.append(
            f"- `{name}`: {', '.join(f'`{key}: {json.dumps(value)}`' for key, value in changes.items()) or 'no changes'}"
        )
    return lines


def _answer(config: Config, frames: Tables, question: Question) -> str:
    """The table of a question."""
    if question is COST:
        ratios = frames["cost_ratios"]
        return _wide(ratios, ["task", "method"], "quantity", text.intervals(ratios, 3))
    if question is GUARDS:
        guards = frames["guards_at_equal_score"]
        return _wide(guards, ["task", "method", "seeds"], "guard", text.intervals(guards, 3, "+"))
    if question is ATTRIBUTES:
        return _attributes(frames["attributes"])
    return _comparisons(config, frames, question.pairs)


def _comparisons(config: Config, frames: Tables, pairs: tuple[comparisons.Pair, ...]) -> str:
    """A row a task and pair."""
    learning, parts = frames["learning"], []
    for task, rows in comparisons.by_task(config, frames["comparisons"], pairs).items():
        places = text.digits(learning.loc[learning["task"] == task, "mean"])
        parts.append(
            pd.DataFrame(
                {
                    "task": task,
                    "difference": rows["method"] + " − " + rows["reference"],
                    "final score": text.intervals(rows, places, "+"),
                    "mixed model": text.intervals(rows, places, "+", ("mixed_mean", "mixed_low", "mixed_high")),
                    "p": [text.probability(p).removeprefix("= ") for p in rows["p"]],
                    "corrected p": [text.probability(p).removeprefix("= ") for p in rows["p_holm"]],
                    "mean height of the learning curve": text.intervals(rows, places, "+", ("area", "area_low", "area_high")),
                    "n": [f"{row.images} ({row.prompts} × {row.seeds})" for row in rows.itertuples()],
                }
            )
        )
    return text.markdown(pd.concat(parts)) if parts else _NOT_MEASURED


def _thresholds(frames: Tables) -> str:
    learning, rows = frames["learning"], []
    for row in frames["thresholds"].itertuples():
        places = text.digits(learning.loc[learning["task"] == row.task, "mean"])
        at, low, high = map(_epochs, (row.epochs, row.epochs_low, row.epochs_high))
        reached = f"{100 * row.reached:.0f} %"
        rows.append((row.task, row.method, f"{row.threshold:.{places}f}", f"{at} [{low}, {high}]", reached))
    return text.markdown(pd.DataFrame(rows, columns=["task", "method", "score to reach", "epochs", "resamples that reach it"]))


def _epochs(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "not reached"


def _attributes(table: pd.DataFrame) -> str:
    signs = ["+" if contrast else "" for contrast in table["contrast"]]
    estimates = table[tables.INTERVAL].itertuples(index=False, name=None)
    cells = [text.interval(*estimate, 3, sign) for estimate, sign in zip(estimates, signs, strict=True)]
    rows = table.assign(kind=table["kind"].where(~table["contrast"], table["kind"] + " − local"))
    return _wide(rows, ["kind", "prompts"], "quantity", cells)


def _diagnostics(table: pd.DataFrame) -> list[str]:
    parts = []
    for places, quantities in (
        (3, ("map_localisation", "gradient_inside", "object_area", "map_effective_area")),
        (4, ("clip_fraction", "grad_norm", "update_norm", "kl")),
    ):
        rows = table[table["quantity"].isin(quantities)]
        if len(rows):
            parts.append(_wide(rows, ["task", "method"], "quantity", text.intervals(rows, places)))
    return parts


def _wide(rows: pd.DataFrame, index: list[str], column: str, cells: list[str]) -> str:
    return text.markdown(text.wide(rows, index, column, cells).astype(str))
