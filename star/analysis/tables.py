"""The five tables as data frames, long where that is what a machine wants; star/analysis/text.py makes them readable."""

import pandas as pd

from star.analysis.results import methods
from star.analysis.statistics import by_tag, difference, summary
from star.config import Config, main_scorer, methods_of

REFERENCES = ("base", "flow_grpo", "random")
STATISTIC = ["mean", "ci_low", "ci_high", "n"]
_MB = 1e6


def main(config: Config, final: pd.DataFrame) -> pd.DataFrame:
    """Long table: task, method, metric, mean, ci_low, ci_high, n.

    `metric` is the task's name for its score, and <task>-minus-<reference> for the paired differences to REFERENCES.
    """
    rows = []
    for task in config.tasks:
        scorer, of_method = main_scorer(config, task), dict(list(final[final["task"] == task].groupby("method")))
        for method in methods(config, task):
            rows.append({"task": task, "method": method, "metric": task} | summary(scorer, of_method[method]))
            for reference in REFERENCES:
                if method in ("base", reference) or reference not in of_method:
                    continue
                paired = difference(scorer, of_method[method], of_method[reference])
                rows.append({"task": task, "method": method, "metric": f"{task}-minus-{reference}"} | paired)
    return pd.DataFrame(rows, columns=["task", "method", "metric", *STATISTIC])


def categories(config: Config, final: pd.DataFrame) -> pd.DataFrame:
    """Long table: task, method, tag, mean, ci_low, ci_high, n, for the tasks whose score is a mean over tags."""
    rows = []
    for task in config.tasks:
        scorer = main_scorer(config, task)
        if not by_tag(scorer):
            continue
        for method in methods(config, task):
            scores = final[(final["task"] == task) & (final["method"] == method)]
            for tag in scores["tag"].unique():
                rows.append({"task": task, "method": method, "tag": tag} | summary(scorer, scores[scores["tag"] == tag]))
            rows.append({"task": task, "method": method, "tag": "overall"} | summary(scorer, scores))
    return pd.DataFrame(rows, columns=["task", "method", "tag", *STATISTIC])


def guards(measured: pd.DataFrame) -> pd.DataFrame:
    """Long table of the collapse guards of every scored checkpoint: task, method, step, guard, mean over seeds, n images."""
    known = measured.dropna(subset="value").groupby(["task", "method", "step", "guard"], sort=False)
    return known.agg(mean=("value", "mean"), n=("images", "sum")).reset_index()


def cost(config: Config, metrics: pd.DataFrame) -> pd.DataFrame:
    """What training costs: one row a task and method, over all epochs of all seeds.

    Seconds of an epoch are the sum of its four parts. Columns: seconds_epoch (median), seconds_total (one training,
    mean over seeds), seconds_<part> (medians), map_overhead_percent (total of seconds_maps over total seconds),
    epoch_ratio (median epoch over that of flow_grpo; NaN without it), images_per_second, peak_memory_mb (10^6 bytes).
    """
    rows = []
    for task in config.tasks:
        of_method = dict(list(metrics[metrics["task"] == task].groupby("method")))
        scalar = of_method["flow_grpo"]["seconds"].median() if "flow_grpo" in of_method else float("nan")
        for method in methods_of(config, task):
            runs = of_method[method]
            parts = {f"seconds_{p}": runs[f"seconds_{p}"].median() for p in ("rollout", "maps", "reward", "update")}
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "epochs": runs["epoch"].max(),
                    "seconds_epoch": runs["seconds"].median(),
                    "seconds_total": runs["seconds"].sum() / runs["seed"].nunique(),
                    **parts,
                    "map_overhead_percent": 100 * runs["seconds_maps"].sum() / runs["seconds"].sum(),
                    "epoch_ratio": runs["seconds"].median() / scalar,
                    "images_per_second": runs["images"].sum() / runs["seconds"].sum(),
                    "peak_memory_mb": runs["peak_memory_bytes"].max() / _MB,
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
        for method in methods_of(config, task):
            paired = table.reindex([(task, method, f"{task}-minus-flow_grpo")]).iloc[0]
            runs = metrics[(metrics["task"] == task) & (metrics["method"] == method)]
            epochs = runs["epoch"].max()
            last_fifth = runs["epoch"] > epochs - max(1, epochs // 5)
            rows.append(
                {"task": task, "method": method}
                | table.loc[(task, method, task)].to_dict()
                | {"diff": paired["mean"], "diff_low": paired["ci_low"], "diff_high": paired["ci_high"]}
                | {"reward_last_fifth": runs.loc[last_fifth, "reward_mean"].mean()}
            )
    return pd.DataFrame(rows).astype({"n": int})
