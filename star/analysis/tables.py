"""Tables of an experiment and of its trainings, long where that is what a machine wants; text.py makes them readable.

The five tables of `star tables`: main, categories, cost, ablation, guards, with intervals over prompts. The others are of
several seeds: cost_ratios, diagnostics, localisation, with Student's t over the seeds.
"""

import pandas as pd

from star.analysis.results import RUN, main_scores, methods, reported
from star.analysis.statistics import Interval, by_tag, difference, student, summary
from star.config import Config, main_scorer, methods_of, run_settings

STATISTIC = ["mean", "ci_low", "ci_high", "n"]
INTERVAL = list(Interval._fields)
_PARTS = ("rollout", "maps", "reward", "update")
_DIAGNOSTICS = (
    *("map_localisation", "gradient_inside", "object_area", "map_entropy", "map_effective_area", "map_drift"),
    *("clip_fraction", "grad_norm", "update_norm", "kl"),
)
_MB = 1e6


def references(config: Config, task: str) -> list[str]:
    """What methods are compared with: the untrained model, every scalar objective (without maps), and random maps."""
    scalar = [method for method in methods_of(config, task) if run_settings(config, task, method).allocation.source == "none"]
    return list(dict.fromkeys(["base", *scalar, "random"]))


def main(config: Config, final: pd.DataFrame) -> pd.DataFrame:
    """Long table: task, method, metric, mean, ci_low, ci_high, n.

    `metric` is a reported scorer, and <scorer>-minus-<reference> for the paired differences to `references`.
    """
    rows = []
    for task in config.tasks:
        for scorer in reported(config, task):
            scores = final[(final["task"] == task) & (final["metric"] == scorer)]
            scores_of = dict(list(scores.groupby("method")))
            for method in methods(config, task):
                rows.append({"task": task, "method": method, "metric": scorer} | summary(scorer, scores_of[method]))
                for reference in references(config, task):
                    if method in ("base", reference) or reference not in scores_of:
                        continue
                    paired = difference(scorer, scores_of[method], scores_of[reference])
                    rows.append({"task": task, "method": method, "metric": f"{scorer}-minus-{reference}"} | paired)
    return pd.DataFrame(rows, columns=["task", "method", "metric", *STATISTIC])


def categories(config: Config, final: pd.DataFrame) -> pd.DataFrame:
    """Long table: task, method, tag, mean, ci_low, ci_high, n, for the tasks whose main score is a mean over tags."""
    rows = []
    for task in config.tasks:
        scorer = main_scorer(config, task)
        if not by_tag(scorer):
            continue
        of_task = main_scores(config, final, task)
        for method in methods(config, task):
            scores = of_task[of_task["method"] == method]
            for tag in scores["tag"].unique():
                rows.append({"task": task, "method": method, "tag": tag} | summary(scorer, scores[scores["tag"] == tag]))
            rows.append({"task": task, "method": method, "tag": "overall"} | summary(scorer, scores))
    return pd.DataFrame(rows, columns=["task", "method", "tag", *STATISTIC])


def guards(measured: pd.DataFrame) -> pd.DataFrame:
    """Long table of the collapse guards of every scored epoch: task, method, epoch, guard, mean over seeds, n images."""
    defined = measured.dropna(subset="value")
    grouped = defined.groupby(["task", "method", "epoch", "guard"], sort=False)
    return grouped.agg(mean=("value", "mean"), n=("images", "sum")).reset_index()


def cost(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """What training costs: one row a task and method, over all epochs of all seeds.

    Seconds of an epoch are the sum of its four parts. Columns: seconds_epoch (median), seconds_total (one training,
    mean over seeds), seconds_<part> (medians), map_overhead_percent (total of seconds_maps over total seconds),
    epoch_ratio (median epoch over that of flow_grpo; NaN without it), images_per_second, peak_memory_mb (10^6 bytes).
    """
    rows = []
    for task in config.tasks:
        epochs_of = dict(list(metrics[metrics["task"] == task].groupby("method")))
        scalar = epochs_of["flow_grpo"]["seconds"].median() if "flow_grpo" in epochs_of else float("nan")
        for method in methods_of(config, task):
            epochs = epochs_of[method]
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "epochs": epochs["epoch"].max(),
                    "seconds_epoch": epochs["seconds"].median(),
                    "seconds_total": epochs["seconds"].sum() / epochs["seed"].nunique(),
                    **{f"seconds_{part}": epochs[f"seconds_{part}"].median() for part in _PARTS},
                    "map_overhead_percent": 100 * epochs["seconds_maps"].sum() / epochs["seconds"].sum(),
                    "epoch_ratio": epochs["seconds"].median() / scalar,
                    "images_per_second": epochs["images"].sum() / epochs["seconds"].sum(),
                    "peak_memory_mb": epochs["peak_memory_bytes"].max() / _MB,
                }
            )
    return pd.DataFrame(rows)


def ablation(config: Config, main: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Trained methods side by side: final score, its paired difference to flow_grpo, the reward at the end of training.

    Columns: task, method, mean, ci_low, ci_high, n, diff, diff_low, diff_high (to flow_grpo; NaN for itself or without
    it), reward_last_fifth (mean reward_mean of the last fifth of the epochs, at least one).
    """
    table = main.set_index(["task", "method", "metric"])[STATISTIC]
    rows = []
    for task in config.tasks:
        scorer = main_scorer(config, task)
        for method in methods_of(config, task):
            paired = table.reindex([(task, method, f"{scorer}-minus-flow_grpo")]).iloc[0]
            epochs = metrics[(metrics["task"] == task) & (metrics["method"] == method)]
            count = epochs["epoch"].max()
            last_fifth = epochs["epoch"] > count - max(1, count // 5)
            rows.append(
                {"task": task, "method": method}
                | table.loc[(task, method, scorer)].to_dict()
                | {"diff": paired["mean"], "diff_low": paired["ci_low"], "diff_high": paired["ci_high"]}
                | {"reward_last_fifth": epochs.loc[last_fifth, "reward_mean"].mean()}
            )
    return pd.DataFrame(rows).astype({"n": int})


# Of several seeds.


def cost_ratios(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Ratios to flow_grpo, paired by seed: task, method, quantity (`time`, `memory`), mean, low, high, seeds.

    Time is the median epoch, memory the peak of the process.
    """
    rows = []
    of_run = metrics.groupby(RUN).agg(time=("seconds", "median"), memory=("peak_memory_bytes", "max"))
    for task in config.tasks:
        trained = methods_of(config, task)
        if "flow_grpo" not in trained:
            continue
        for method in trained:
            if method == "flow_grpo":
                continue
            ratios = (of_run.loc[task, method] / of_run.loc[task, "flow_grpo"]).dropna()
            for quantity in ("time", "memory"):
                rows.append((task, method, quantity, *student(ratios[quantity].to_numpy()), len(ratios)))
    return pd.DataFrame(rows, columns=["task", "method", "quantity", *INTERVAL, "seeds"])


def diagnostics(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over a training's epochs: task, method, quantity, mean, low, high, seeds."""
    rows = []
    of_run = metrics.groupby(RUN)[[quantity for quantity in _DIAGNOSTICS if quantity in metrics]].mean()
    for task in config.tasks:
        for method in methods_of(config, task):
            for quantity, values in of_run.loc[task, method].dropna(axis=1).items():
                rows.append((task, method, quantity, *student(values.to_numpy()), len(values)))
    return pd.DataFrame(rows, columns=["task", "method", "quantity", *INTERVAL, "seeds"])


def localisation(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """Localisation gain of `star`'s attention at every denoising step: task, step, mean, low, high, seeds."""
    rows = []
    for task in config.tasks:
        epochs = metrics[(metrics["task"] == task) & (metrics["method"] == "star")]
        if epochs.empty:
            continue
        settings = run_settings(config, task, "star")
        for step in range(settings.rollout.steps):
            columns = [f"localisation_block{block}_step{step}" for block in settings.allocation.blocks]
            columns = [column for column in columns if column in epochs]
            values = epochs.groupby("seed")[columns].mean().mean(axis=1).dropna()
            if len(values):
                rows.append((task, step, *student(values.to_numpy()), len(values)))
    return pd.DataFrame(rows, columns=["task", "step", *INTERVAL, "seeds"])


def trainings(metrics: pd.DataFrame, machines: dict[tuple[str, str, int], dict]) -> pd.DataFrame:
    """Every training: task, method, seed, epochs, seconds, peak_memory_mb, and its machine (cpu to torch)."""
    rows = []
    for run, epochs in metrics.groupby(RUN, sort=False):
        rows.append(
            dict(zip(RUN, run, strict=True))
            | {"epochs": len(epochs), "seconds": epochs["seconds"].sum()}
            | {"peak_memory_mb": epochs["peak_memory_bytes"].max() / _MB}
            | {key: machines[run][key] for key in ("cpu", "cores", "memory_gib", "gpu", "torch")}
        )
    return pd.DataFrame(rows)
