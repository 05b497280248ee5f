"""Stage `evidence`: what several seeds say of allocation, in tables, one figure a question, and a page of text."""

from pathlib import Path

from star.config import Config, main_scorer


def collect(config: Config, folder: Path) -> None:
    """Keep the finished runs of an experiment small in `folder`, and print which are missing. Raises InputError (data.py)."""
    from star.evidence import data

    written, missing = data.collect(config, folder)
    for path in missing:
        print(f"not finished: {path} is missing")
    size = sum(path.stat().st_size for path in folder.glob("*.json.gz")) / 1e6
    print(f"{len(written)} of {len(written) + len(missing)} runs collected; {folder} has {size:.2f} MB")


def write(config: Config, folder: Path, out: Path) -> None:
    """Write `out`/evidence.md, `out`/evidence/<question>.svg and `out`/evidence/tables/*.csv from collected runs.

    Raises InputError, before anything is written, when the runs cannot be compared; see data.read.
    """
    from star.analysis import tables as plain
    from star.analysis.text import write_text
    from star.evidence import data, figures, measures, report
    from star.evidence import tables as evidence

    found = data.read(config, folder)
    config, scores, metrics = found.config, found.scores, found.metrics
    tables = {
        "evidence": evidence.comparisons(config, scores),
        "evidence_by_seed": evidence.by_seed(config, scores),
        "evidence_learning": evidence.learning(config, scores),
        "evidence_thresholds": evidence.thresholds(config, scores),
        "evidence_cost": measures.cost(config, metrics),
        "evidence_seconds": plain.cost(config, metrics),
        "evidence_guards": measures.equal_reward(config, scores, found.guards),
        "evidence_guard_paths": measures.guard_paths(config, scores, found.guards),
        "evidence_diagnostics": measures.diagnostics(config, metrics),
        "evidence_localisation": measures.localisation_by_step(config, metrics),
        "evidence_runs": measures.runs(metrics, found.machines),
    }
    if any(main_scorer(config, task) == "geneval" for task in config.tasks):
        tables["evidence_failures"] = evidence.failures(config, scores)
    if found.attributes is not None:
        tables["evidence_attributes"] = evidence.attributes(*found.attributes)
    (out / "evidence" / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(out / "evidence" / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.8g"))
    drawn = figures.write(out / "evidence", config, tables)
    write_text(out / "evidence.md", report.text(found.asked, config, tables, drawn))
