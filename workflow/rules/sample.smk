rule sample:
    # `star sample` writes prompts.jsonl last. The pictures beside it are undeclared: a rerun after a failure keeps them
    # (`--start-over`: unless they are of other weights or settings).
    input:
        trained,
        fetched=FETCHED,
        prompts=TEST_PROMPTS,
        policy=weights(CONFIG.policy.model),
    output:
        RUN.samples(EPOCH) / "prompts.jsonl",
    log:
        f"{LOGS}/sample/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}.log",
    benchmark:
        f"{BENCHMARKS}/sample/{{task}}-{{method}}-seed{{seed}}-epoch{{epoch}}.tsv"
    params:
        key=lambda wildcards: key.sampling_key(CONFIG),  # when a job needs it: the base may still have to be made
        config=RESOLVED,
        images=str(RUN.samples(EPOCH)),
        adapter=adapter_option,
    threads: 4 if GPUS else 1
    resources:
        mem_mb=48000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Sampling the {CONFIG.evaluation.split} prompts of {wildcards.task} with {wildcards.method}, seed {wildcards.seed}, epoch {wildcards.epoch}"
    shell:
        "{GPU_STAR} sample --config {params.config} --prompts {input.prompts} --out {params.images} {params.adapter} "
        "--seed {wildcards.seed} --start-over > {log} 2>&1"
