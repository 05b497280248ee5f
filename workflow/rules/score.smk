rule score:
    input:
        RUN.samples(EPOCH) / "prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(main_scorer(CONFIG, wildcards.task), "pickscore"),  # the guards look with PickScore
    output:
        scores=RUN.scores(EPOCH),
        guards=RUN.guards(EPOCH),
    log:
        f"{LOGS}/score/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}.log",
    benchmark:
        f"{BENCHMARKS}/score/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}.tsv"
    params:
        key=scoring_keys,
        config=RESOLVED,
        scorer=lambda wildcards: main_scorer(CONFIG, wildcards.task),
        images=str(RUN.samples(EPOCH)),
        guards=lambda wildcards, output: f"--guards {output.guards}",
    threads: 4 if GPUS else 1
    resources:
        mem_mb=16000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        SCORING
    message:
        "Scoring {wildcards.method} on {wildcards.task}, seed {wildcards.seed}, epoch {wildcards.epoch}"
    shell:
        "{GPU_STAR} score --config {params.config} --scorer {params.scorer} --images {params.images} --out {output.scores} "
        "{params.guards} > {log} 2>&1"


use rule score as score_reported with:
    input:
        RUN.samples(EPOCH) / "prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(reported_scorer(wildcards)),
    output:
        scores=RUN.scores(EPOCH, "{scorer}"),
    log:
        f"{LOGS}/score_reported/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}-{{scorer}}.log",
    benchmark:
        f"{BENCHMARKS}/score_reported/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}-{{scorer}}.tsv"
    params:
        key=lambda wildcards: key.scoring_key(CONFIG, reported_scorer(wildcards)),
        config=RESOLVED,
        scorer=reported_scorer,
        images=str(RUN.samples(EPOCH)),
        guards="",
    message:
        "Scoring {wildcards.method} on {wildcards.task} with {wildcards.scorer}, seed {wildcards.seed}, epoch {wildcards.epoch}"
