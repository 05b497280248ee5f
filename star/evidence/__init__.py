"""Stage `evidence`: what several seeds say of allocation, in tables, one figure a question, and a page of text."""

from pathlib import Path

from star.config import Config


def write(config: Config, out: Path) -> None:
    """Write `out`/tables/evidence*.csv, `out`/evidence/<question>.{svg,png} and `out`/evidence.md of one experiment.

    Reads what `star tables` reads, and of the miniature's pickscore runs global/scores.jsonl and global/map_statistics.csv.
    Raises InputError, before anything is written, when a file is missing, or when there are too few seeds or methods.
    """
    from star.evidence import figures, measures, questions, report
    from star.evidence import tables as evidence
    from star.tables import results
    from star.tables import tables as plain
    from star.tables.text import write_text

    questions.require(config)
    scores, metrics = results.scores(config), results.metrics(config)
    guards = results.guards(config, scores)
    tables = {
        "evidence": evidence.comparisons(config, scores),
        "evidence_learning": evidence.learning(config, scores),
        "evidence_thresholds": evidence.thresholds(config, scores),
        "evidence_cost": measures.cost(config, metrics),
        "evidence_guards": measures.equal_reward(config, scores, guards),
        "evidence_guard_paths": measures.guard_paths(config, scores, guards),
        "evidence_diagnostics": measures.diagnostics(config, metrics),
        "evidence_localisation": measures.localisation_by_step(config, metrics),
        "evidence_runs": measures.runs(config, metrics),
    }
    if questions.asks_about_attributes(config):
        tables["evidence_attributes"] = evidence.attributes(*evidence.read_attributes(config))
    others = {"main": plain.main(config, results.final(config, scores)), "cost": plain.cost(config, metrics)}
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(out / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.8g"))
    drawn = figures.write(out / "evidence", config, tables | others)
    write_text(out / "evidence.md", report.text(config, tables | others, drawn))
