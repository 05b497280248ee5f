rule kit_verdicts:
    # Not part of `all`: GenEval's own detector on the pictures of `make kit`, which then takes the verdicts along.
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
