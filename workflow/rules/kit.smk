rule kit:
    # Not part of `all`: a first run on real weights, by whoever has a GPU. `--config 'tasks=...'` and the like change it as all else.
    input:
        FETCHED,
    output:
        packed=EXPERIMENT / "kit.zip",
        samples=EXPERIMENT / "kit/samples/prompts.jsonl",
    log:
        f"{LOGS}/kit.log",
    benchmark:
        f"{BENCHMARKS}/kit.tsv"
    params:
        config=RESOLVED,
        task=next(iter(CONFIG.tasks)),
        out=str(EXPERIMENT / "kit"),
    threads: 4 if GPUS else 1
    resources:
        mem_mb=64000 if GPUS else 4000,
        runtime=240,
        gpu=GPUS,
    conda:
        SCORING
    message:
        "Trying everything small: weights, scorers, an epoch of each objective"
    shell:
        "{GPU_STAR} kit --config {params.config} --task {params.task} --out {params.out} > {log} 2>&1"


rule kit_verdicts:
    # GenEval's own detector on the kit's pictures; the next `star kit` into the same folder takes them along.
    input:
        EXPERIMENT / "kit/samples/prompts.jsonl",
    output:
        EXPERIMENT / "kit/verdicts.jsonl",
    log:
        f"{LOGS}/kit_verdicts.log",
    benchmark:
        f"{BENCHMARKS}/kit_verdicts.tsv"
    params:
        config=RESOLVED,
        images=str(EXPERIMENT / "kit/samples"),
    threads: 4 if GPUS else 1
    resources:
        mem_mb=16000,
        runtime=60,
        gpu=GPUS,
    conda:
        "../../envs/mmdet.yaml"
    message:
        "Judging the kit's pictures by GenEval's own detector"
    shell:
        "{GPU_STAR} score --config {params.config} --set scorers.geneval.detector=mmdet --scorer geneval "
        "--images {params.images} --out {output} > {log} 2>&1"
