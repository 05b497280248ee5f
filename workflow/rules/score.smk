rule score:
    input:
        f"{RUN}/samples/step{{step}}/prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(wildcards.task, "pickscore"),  # the guards look with PickScore
    output:
        scores=f"{RUN}/scores/step{{step}}.jsonl",
        guards=f"{RUN}/guards/step{{step}}.json",
    log:
        f"{LOGS}/score/{{task}}-{{method}}-seed{{seed}}-step{{step}}.log",
    benchmark:
        f"{BENCHMARKS}/score/{{task}}-{{method}}-seed{{seed}}-step{{step}}.tsv"
    params:
        settings=digest("scorers"),
        diversity=CONFIG.scorers.diversity,
        config=RESOLVED,
        images=f"{RUN}/samples/step{{step}}",
        guards=lambda wildcards, output: f"--guards {output.guards}",
    threads: 4 if GPUS else 1
    resources:
        mem_mb=16000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        SCORING
    message:
        "Scoring {wildcards.method} on {wildcards.task}, seed {wildcards.seed}, step {wildcards.step}"
    shell:
        "{GPU_STAR} score --config {params.config} --task {wildcards.task} --images {params.images} --out {output.scores} "
        "{params.guards} > {log} 2>&1"
