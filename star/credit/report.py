"""What is written of a measurement: credit.csv, steps.csv, octiles.csv, credit.md and credit.svg."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from star.analysis.style import COLORS, STYLE, caption, dot_across, legend, reference_line, rows_axis, save
from star.analysis.text import markdown, save_csv
from star.credit import estimates
from star.credit.allocations import SCALAR
from star.credit.estimates import Estimates
from star.credit.measure import about
from star.credit.statistics import CONFIDENCE, RESAMPLES, WEIGHTINGS
from star.files import write_text

_UNDEFINED = "not measurable"
_MARKERS = dict(zip(WEIGHTINGS, ("o", "s", "D"), strict=True))
_HEADINGS = {
    "equal": "Steps weigh the same",
    "equal_noise": "Every step scaled to equal noise (one over the root mean square of its own gradient)",
    "measured": "Steps weighed by measured signal over noise (of the scalar objective, from the other half of the batches)",
}
_NOTES = """signal: inner product with the true gradient, over the scalar objective's. noise: mean squared length of one \
batch's gradient, over the scalar objective's. cosine: expected cosine of one batch's gradient with the true gradient. \
efficiency: squared ratio of cosines to the scalar objective's with equal steps, that is how many times fewer rollouts. over \
scalar so weighted: the same over the scalar objective with the same rule for its steps. gain: of an AdamW step, over an \
equally long one of the scalar objective. bias: share of the expected gradient's squared length that does not lie along the \
true one."""
_COLUMNS = {  # and their headings
    "allocation": "allocation",
    "signal": "signal",
    "noise": "noise",
    "cosine": "cosine",
    "efficiency": "efficiency",
    "same_steps": "over scalar so weighted",
    "gain": "gain",
    "bias": "bias",
    "measurable": "measurable",
}
_RATIOS = ("signal", "efficiency", "same_steps", "gain", "bias")  # to the scalar objective's signal
_PLACES = {name: 3 if name == "cosine" else 2 for name in list(_COLUMNS)[1:-1]}


def write(out: Path, rows: list[str], batches: list[Path], towards: str) -> str:
    """Write tables and figure of some rows and batches into `out`; returns the verdict in words. `towards`: see Estimates."""
    what = about(out) | {"towards": towards}
    estimated = Estimates(rows, batches, what["dimensions"], towards=towards)
    table, steps, octiles = estimates.allocations(estimated), estimates.steps(estimated), estimates.octiles(estimated)
    save_csv(out / "credit.csv", table)
    save_csv(out / "steps.csv", steps)
    if len(octiles):
        save_csv(out / "octiles.csv", octiles)
    said = verdict(table)
    write_text(out / "credit.md", _page(what, table, steps, octiles=octiles, said=said))
    with plt.rc_context(STYLE):
        save(figure(table, what), out / "credit.svg")
    return said


def verdict(table: pd.DataFrame) -> str:
    """What the table says, in words: whether the scalar objective is measurable, and what is better or worse than it."""
    equal = table[table["steps"] == "equal"].set_index("allocation")
    if not equal.loc[SCALAR, "measurable"]:
        return (
            "The scalar objective's cosine is not told from 0: nothing is measurable yet. More batches, or larger ones, are "
            "needed."
        )
    others = equal.drop(SCALAR)
    better, worse = (list(others.index[mask]) for mask in (others["efficiency_low"] > 1, others["efficiency_high"] < 1))
    said = []
    if better:
        said.append(f"Better than the scalar objective: {', '.join(better)}.")
    if len(worse) == len(others) and worse:
        said.append("Every allocation is worse than the scalar objective.")
    elif worse:
        said.append(f"Worse than the scalar objective: {', '.join(worse)}.")
    if not better and len(worse) < len(others):
        said.append("No allocation in space is told to be better than the scalar objective.")
    weighed = table[(table["allocation"] == SCALAR) & (table["steps"] != "equal")].set_index("steps")
    for rule, row in weighed.iterrows():
        told = "better" if row["efficiency_low"] > 1 else "worse" if row["efficiency_high"] < 1 else "not told apart"
        said.append(f"Step weights `{rule}` of the scalar objective: {_cell(row, 'efficiency')}, {told}.")
    return " ".join(said)


def _cell(row: pd.Series, column: str, places: int = 2) -> str:
    """`1.26 [0.97, 1.75]`; a limit that is not defined is `-`."""
    value, low, high = (row[column], row[f"{column}_low"], row[f"{column}_high"])
    if not np.isfinite(value):
        return "-"
    limits = ", ".join(f"{limit:.{places}f}" if np.isfinite(limit) else "-" for limit in (low, high))
    return f"{value:.{places}f} [{limits}]"


def _readable(rows: pd.DataFrame, columns: dict[str, str], cell: dict[str, int]) -> pd.DataFrame:
    """The `columns` under their headings; those in `cell` with their intervals, to so many places."""
    found = {}
    for column, heading in columns.items():
        found[heading] = [_cell(row, column, cell[column]) if column in cell else row[column] for _, row in rows.iterrows()]
    return pd.DataFrame(found)


def _page(what: dict, table: pd.DataFrame, steps: pd.DataFrame, *, octiles: pd.DataFrame, said: str) -> str:
    """The tables in Markdown."""
    batches, scalar = int(table["batches"].iloc[0]), table[table["allocation"] == SCALAR].set_index("steps")
    error = table[(table["steps"] == "equal") & table["measurable"]]["projection_error"].max()
    policy = f"the adapter {what['adapter']}" if what["adapter"] else "a fresh adapter"
    parts = [
        f"# Credit: {what['task']}, {what['objective']}",
        f"{batches} batches, {policy}, seed {what['seed']}. {_truth(what)}{_TOWARDS[what['towards']]} In brackets: "
        f"{CONFIDENCE:.0%} interval from "
        f"{RESAMPLES} bootstrap resamples of the batches, paired over allocations.",
        said,
        f"One batch of the scalar objective: cosine {_cell(scalar.loc['equal'], 'cosine', 3)}.",
    ]
    if np.isfinite(error):
        parts.append(
            f"Gradients are projected to {what['dimensions']} dimensions, which adds a standard error of at most {error:.1%} "
            "to a measurable signal."
        )
    parts.append(_NOTES)
    told = bool(scalar.loc["equal", "measurable"])  # else ratios to the scalar signal mean nothing
    for rule, heading in _HEADINGS.items():
        rows = table[table["steps"] == rule].assign(measurable=lambda t: np.where(t["measurable"], "yes", _UNDEFINED))
        chosen = {
            key: name
            for key, name in _COLUMNS.items()
            if (rule != "equal" or key != "same_steps") and (told or key not in _RATIOS)
        }
        parts += [f"## {heading}", markdown(_readable(rows, chosen, _PLACES))]
    alone = steps[steps["allocation"] == SCALAR]
    shares = {"step": "step"} | ({"signal": "share of the signal"} if told else {}) | {"noise": "share of the noise"}
    parts += [
        "## Steps of the scalar objective",
        markdown(
            _readable(alone, shares, _SHARES).assign(
                **{rule: alone[f"weight_{rule}"].map("{:.3f}".format).to_numpy() for rule in WEIGHTINGS[1:]}
            )
        ),
        "The last two columns are the weights of the steps, of mean one, from all batches.",
    ]
    if told:
        parts += ["## One step alone: efficiency towards its own true gradient", markdown(_by_step(steps))]
    if told and len(octiles):
        columns = {"octile": "eighth of the places", "signal": "share of the signal", "noise": "share of the noise"}
        parts += [
            f"## Places, by the weight of the map of {octiles['allocation'].iloc[0]} (1: least)",
            markdown(_readable(octiles, columns, _SHARES)),
        ]
    return "\n\n".join(parts) + "\n"


_SHARES = {"signal": 3, "noise": 3}
_TOWARDS = {
    "equal": "",
    "equal_noise": " Here its steps are scaled to equal noise, which takes fewer batches; it then has the true gradient's "
    "direction as far as the steps agree on one.",
}


def _truth(what: dict) -> str:
    if what["noisy"]:
        return "The true gradient is the policy gradient, the mean of the scalar objective's."
    return (
        f"The true gradient is the mean of {what['objective']}'s own scalar gradient, which is no policy gradient: the numbers "
        "say how well one batch points along it, not what it is worth."
    )


def _by_step(steps: pd.DataFrame) -> pd.DataFrame:
    others = steps[steps["allocation"] != SCALAR]
    cells = others.assign(cell=[_cell(row, "efficiency") for _, row in others.iterrows()])
    table = cells.pivot(index="allocation", columns="step", values="cell").reindex(cells["allocation"].unique())
    return table.rename(columns=lambda step: f"step {step}").rename_axis(None, axis=1).reset_index()


def figure(table: pd.DataFrame, what: dict) -> Figure:
    """Efficiency of every allocation with its interval, under the three weightings of the steps."""
    names = list(table["allocation"].unique())
    drawn, axes = plt.subplots(figsize=(7.5, 0.34 * len(names) + 1.6), layout="constrained")
    rows_axis(axes, names)
    reference_line(axes, 1.0)
    for n, (rule, color) in enumerate(zip(WEIGHTINGS, COLORS, strict=False)):
        rows = table[(table["steps"] == rule) & table["measurable"] & (table["efficiency"] > 0)]
        style = {"color": color, "marker": _MARKERS[rule], "markersize": 4, "capsize": 2, "linestyle": "none"}
        for first, (_, row) in enumerate(rows.iterrows()):
            limits = (row["efficiency"], max(row["efficiency_low"], 1e-2), row["efficiency_high"])
            label = {"label": rule} if first == 0 else {}
            dot_across(axes, names.index(row["allocation"]) + 0.22 * (n - 1), limits, **style, **label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("efficiency: times fewer rollouts than the scalar objective with equal steps")
    if axes.get_legend_handles_labels()[0]:
        legend(drawn, [axes])
    caption(
        drawn,
        f"{what['task']}, {what['objective']}, {table['batches'].iloc[0]} batches; bars: {CONFIDENCE:.0%} intervals over "
        "batches. "
        f"What is {_UNDEFINED} has no dot.",
    )
    return drawn
