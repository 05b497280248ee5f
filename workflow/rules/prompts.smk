rule prompts:
    input:
        own=lambda wildcards: getattr(CONFIG.tasks[wildcards.task].prompts, wildcards.split, None) or [],
        fetched=FETCHED,
    output:
        PROMPTS,
    log:
        f"{LOGS}/prompts/{{task}}-{{split}}.log",
    benchmark:
        f"{BENCHMARKS}/prompts/{{task}}-{{split}}.tsv"
    params:
        key=lambda wildcards: key.prompts_key(settings_of(wildcards), wildcards.split),
        config=RESOLVED,
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    conda:
        "../../envs/star.yaml"
    message:
        "Writing the {wildcards.split} prompts of {wildcards.task}"
    shell:
        "{STAR} prompts --config {params.config} --task {wildcards.task} --split {wildcards.split} --out {output} "
        "> {log} 2>&1"
