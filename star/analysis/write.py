"""Stage `tables`: aggregation of metrics and scores, statistics, tables and figures."""

from pathlib import Path

from star.config import Config


def write(config: Config, out: Path) -> None:
    """Write `out`/tables/{main,categories,cost,ablation,guards}.{csv,md,tex} and `out`/figures/*.svg of one experiment.

    Everything is read from <results>/<experiment>/: metrics.jsonl, scores/epoch<n>.jsonl and guards/epoch<n>.json of every
    task, method and seed in `config`, and the pictures that the sample grid shows. Raises InputError, before anything is
    written, when a file is missing or incomplete, or when scores of one task come from different scorers or prompts.
    """
    from star.analysis import figures, results, tables, text, words

    # Read everything, so that what is missing is known before anything is written.
    scores, metrics = results.scores(config), results.metrics(config)
    final = results.final(config, scores)
    guards = results.guards(config, scores)
    shown = results.sample_grid(config, final)
    # Estimate.
    main = tables.main(config, final)
    frames = {
        "main": main,
        "categories": tables.categories(config, final),
        "cost": tables.cost(config, metrics),
        "ablation": tables.ablation(config, main, metrics),
        "guards": tables.guards(guards),
    }
    # Write.
    prompts = final.groupby("task")["prompt_id"].nunique().to_dict()
    said = words.sentences(config, main)
    text.save(Path(out) / "tables", config, frames, prompts=prompts, words=said)
    figures.write(Path(out) / "figures", config, scores=scores, metrics=metrics, tables=frames, shown=shown)
