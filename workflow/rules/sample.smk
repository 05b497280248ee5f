rule sample:
    # `star sample` writes prompts.jsonl last. The pictures beside it are undeclared: a rerun after a failure keeps them
    # (`--start-over`: unless they are of other weights or settings).
    input:
        trained,
        fetched=FETCHED,
        prompts=f"{EXPERIMENT}/prompts/{{task}}/{CONFIG.evaluation.split}.jsonl",
        policy=weights(CONFIG.policy.model),
    output:
        f"{RUN}/samples/step{{step}}/prompts.jsonl",
    log:
        f"{LOGS}/sample/{{task}}-{{method}}-seed{{seed}}-step{{step}}.log",
    benchmark:
        f"{BENCHMARKS}/sample/{{task}}-{{method}}-seed{{seed}}-step{{step}}.tsv"
    params:
        settings=digest("policy", "evaluation"),
        drawn_by=DRAWN_BY,
        config=RESOLVED,
        images=f"{RUN}/samples/step{{step}}",
        adapter=adapter_option,
    threads: 4 if GPUS else 1
    resources:
        mem_mb=48000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Sampling the {CONFIG.evaluation.split} prompts of {wildcards.task} with {wildcards.method}, seed {wildcards.seed}, step {wildcards.step}"
    shell:
        "{GPU_STAR} sample --config {params.config} --prompts {input.prompts} --out {params.images} {params.adapter} "
        "--seed {wildcards.seed} --start-over > {log} 2>&1"
