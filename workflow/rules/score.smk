rule score:
    input:
        RUN.samples(EPOCH) / "prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(*CONFIG.tasks[wildcards.task].report, "pickscore"),  # the guards look with PickScore
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
        "{GPU_STAR} score --config {params.config} --task {wildcards.task} --images {params.images} --out {output.scores} "
        "{params.guards} > {log} 2>&1"
