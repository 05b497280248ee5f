# One process scores all tested checkpoints of a run with the task's main scorer and measures their guards; each further scorer
# that the task reports has one more. Scores appear when all are there; until then they are kept as undeclared .partial files,
# from which a rerun goes on.
for task, method in TESTED:
    for scorer in CONFIG.tasks[task].report:
        main = scorer == main_scorer(CONFIG, task)
        name = f"{task}-{method}-seed{{seed}}" + ("" if main else f"-{scorer.replace(':', '.')}")
        guards = of_epochs(layout.Run.guards, task, method) if main else []

        rule:
            name:
                f"score_{task}_{method}" if main else f"score_{task}_{method}_by_{scorer.replace(':', '_').replace('.', '_')}"
            input:
                sampled(task, method),
                fetched=FETCHED,
                # The guards look with PickScore.
                scorers=lambda _, scorers=(scorer, "pickscore") if main else (scorer,): scorer_weights(*scorers),
            output:
                scores=of_epochs(lambda run, epoch: run.scores(epoch, None if main else scorer), task, method),
                guards=guards,
            log:
                f"{LOGS}/score/{name}.log",
            benchmark:
                f"{BENCHMARKS}/score/{name}.tsv"
            params:
                key=lambda _, task=task, scorer=None if main else scorer: (
                    key.scoring_key(CONFIG, scorer) if scorer else scoring_keys(task)
                ),
                config=RESOLVED,
                scorer=scorer,
                images=of_epochs(layout.Run.samples, task, method),
                guards=["--guards", *guards] if main else "",
            threads: 4 if GPUS else 1
            resources:
                mem_mb=16000 if GPUS else 2000,
                runtime=(240 if GPUS else 60) * len(layout.epochs(CONFIG, task, method)),
                gpu=GPUS,
            conda:
                SCORING
            message:
                f"Scoring {method} on {task} with {scorer}, seed {{wildcards.seed}}"
            shell:
                "{GPU_STAR} score --config {params.config} --scorer {params.scorer} --images {params.images} "
                "--out {output.scores} {params.guards} > {log} 2>&1"
