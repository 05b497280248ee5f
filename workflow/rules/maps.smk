rule maps:
    input:
        trained,
        fetched=FETCHED,
        prompts=TEST_PROMPTS,
        policy=weights(CONFIG.policy.model),
    output:
        report(RUN.maps / "maps.svg", caption="../report/maps.rst", category="Allocation maps", labels={"task": "{task}"}),
        RUN.maps / "maps.png",
    log:
        f"{LOGS}/maps/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/maps/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        key=lambda wildcards: key.maps_key(settings_of(wildcards)),
        config=RESOLVED,
        out=str(RUN.maps),
        adapter=adapter_option,
        what="",
    threads: 4 if GPUS else 1
    resources:
        mem_mb=48000 if GPUS else 2000,
        runtime=60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Drawing the allocation maps of {wildcards.method} on {wildcards.task}"
    shell:
        "{GPU_STAR} maps {params.what} --config {params.config} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed} "
        "--prompts {input.prompts} --out {params.out} {params.adapter} > {log} 2>&1"
