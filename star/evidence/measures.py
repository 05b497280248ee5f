"""Cost, collapse guards and diagnostics of trainings: tables of docs/evidence.md. Intervals: 95 %, Student's t over seeds."""

import numpy as np
import pandas as pd

from star.analysis.results import shared_methods
from star.config import SCORERS, Config, methods_of, run_settings
from star.evidence import estimates
from star.evidence.tables import INTERVAL, curves, seeds_of, strata
from star.scoring.scorer import GUARDS

_DIAGNOSTICS = (
    *("map_localisation", "gradient_inside", "object_area", "map_entropy", "map_effective_area", "map_drift"),
    *("clip_fraction", "grad_norm", "update_norm", "kl"),
)


def cost(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Ratios to flow_grpo, paired by seed: task, method, quantity (`time`, `memory`), mean, low, high, seeds.

    Time is the median epoch, memory the peak of the process.
    """
    rows = []
    of_run = metrics.groupby(["task", "method", "seed"]).agg(time=("seconds", "median"), memory=("peak_memory_bytes", "max"))
    for task in config.tasks:
        if "flow_grpo" not in methods_of(config, task):
            continue
        for method in methods_of(config, task):
            ratio = (of_run.loc[task, method] / of_run.loc[task, "flow_grpo"]).dropna()
            for quantity in () if method == "flow_grpo" else ("time", "memory"):
                found = estimates.over_seeds(ratio[quantity].to_numpy())
                rows.append((task, method, quantity, *found, len(ratio)))
    return pd.DataFrame(rows, columns=["task", "method", "quantity", *INTERVAL, "seeds"])


def at_score(score: float, scores_K: np.ndarray, guard_K: np.ndarray) -> float:
    """The guard where a run's checkpoints first reach a score, on the line between two of them; nan where they do not."""
    reached = np.flatnonzero(scores_K >= score)
    if not len(reached):
        return np.nan
    k = reached[0]
    if k == 0:
        return float(guard_K[0])
    share = (score - scores_K[k - 1]) / (scores_K[k] - scores_K[k - 1])
    return float(guard_K[k - 1] + share * (guard_K[k] - guard_K[k - 1]))


def equal_reward(config: Config, scores: pd.DataFrame, guards: pd.DataFrame) -> pd.DataFrame:
    """Guards of shared methods minus flow_grpo's where both first reach the same score, by seed.

    That score is the lower of the two best ones, if above the untrained model's: a seed where it is not does not count.
    Columns: task, method, guard, mean, low, high, seeds.
    """
    rows = []
    for task in config.tasks:
        shared = shared_methods(config, task)
        if "flow_grpo" not in shared:
            continue
        names = guards.loc[(guards["task"] == task) & guards["value"].notna(), "guard"].unique()
        paths = {m: {s: _path(config, scores, guards, task, m, s) for s in seeds_of(scores, task, m)} for m in shared}
        for method in shared:
            for guard in () if method == "flow_grpo" else names:
                found = []
                for seed in seeds_of(scores, task, method, "flow_grpo"):
                    one, other = paths[method][seed], paths["flow_grpo"][seed]
                    score = min(one["score"].max(), other["score"].max())
                    if score > one["score"].iloc[0]:
                        at = [at_score(score, p["score"].to_numpy(), p[guard].to_numpy()) for p in (one, other)]
                        found.append(at[0] - at[1])
                values = estimates.over_seeds(np.array(found)) if found else (np.nan, np.nan, np.nan)
                rows.append((task, method, guard, *values, len(found)))
    return pd.DataFrame(rows, columns=["task", "method", "guard", *INTERVAL, "seeds"])


def _path(config: Config, scores: pd.DataFrame, guards: pd.DataFrame, task: str, method: str, seed: int) -> pd.DataFrame:
    """Score and guards of one run by checkpoint, the untrained model's first."""
    rows = {}
    for step, found in curves(config, scores, task, method, [seed]).items():
        at = guards[(guards["task"] == task) & (guards["seed"] == seed) & (guards["step"] == step)]
        at = at[at["method"] == ("base" if step == 0 else method)].set_index("guard")["value"]
        rows[step] = {"score": estimates.estimate(estimates.cells(found, "score", strata(config, task))), **at.to_dict()}
    return pd.DataFrame.from_dict(rows, orient="index")


def guard_paths(config: Config, scores: pd.DataFrame, guards: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of score and guards: task, method, step, score, and a column a guard."""
    rows = []
    for task in config.tasks:
        for method in shared_methods(config, task):
            runs = [_path(config, scores, guards, task, method, seed) for seed in seeds_of(scores, task, method)]
            mean = pd.concat(runs).groupby(level=0).mean().rename_axis("step").reset_index()
            rows.append(mean.assign(task=task, method=method))
    table = pd.concat(rows, ignore_index=True)
    return table[["task", "method", "step", "score", *(g for g in (*GUARDS, *SCORERS) if g in table)]]


def diagnostics(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over a training's epochs: task, method, quantity, mean, low, high, seeds."""
    rows = []
    of_run = metrics.groupby(["task", "method", "seed"])[[q for q in _DIAGNOSTICS if q in metrics]].mean()
    for task in config.tasks:
        for method in methods_of(config, task):
            for quantity, values in of_run.loc[task, method].dropna(axis=1).items():
                rows.append((task, method, quantity, *estimates.over_seeds(values.to_numpy()), len(values)))
    return pd.DataFrame(rows, columns=["task", "method", "quantity", *INTERVAL, "seeds"])


def runs(metrics: pd.DataFrame, machines: dict[tuple[str, str, int], dict]) -> pd.DataFrame:
    """Every training: task, method, seed, epochs, seconds, peak_memory_mb, and its machine (cpu to torch)."""
    rows = []
    for run, epochs in metrics.groupby(["task", "method", "seed"], sort=False):
        known = dict(zip(("task", "method", "seed"), run, strict=True))
        known |= {
            "epochs": len(epochs),
            "seconds": epochs["seconds"].sum(),
            "peak_memory_mb": epochs["peak_memory_bytes"].max() / 1e6,
        }
        rows.append(known | {key: machines[run][key] for key in ("cpu", "cores", "memory_gib", "gpu", "torch")})
    return pd.DataFrame(rows)


def localisation_by_step(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Localisation gain of `star`'s attention at every step: task, step, mean, low, high, seeds."""
    rows = []
    for task in config.tasks:
        own = metrics[(metrics["task"] == task) & (metrics["method"] == "star")]
        if own.empty:
            continue
        settings = run_settings(config, task, "star")
        for step in range(settings.rollout.steps):
            columns = [f"localisation_block{block}_step{step}" for block in settings.allocation.blocks]
            values = own.groupby("seed")[[c for c in columns if c in own]].mean().mean(axis=1).dropna()
            if len(values):
                rows.append((task, step, *estimates.over_seeds(values.to_numpy()), len(values)))
    return pd.DataFrame(rows, columns=["task", "step", *INTERVAL, "seeds"])
