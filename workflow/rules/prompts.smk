rule prompts:
    input:
        own=lambda wildcards: CONFIG.prompts.files.get(wildcards.task, {}).get(wildcards.split, []),
        fetched=FETCHED,
    output:
        PROMPTS,
    log:
        f"{LOGS}/prompts/{{task}}-{{split}}.log",
    benchmark:
        f"{BENCHMARKS}/prompts/{{task}}-{{split}}.tsv"
    params:
        settings=digest("prompts"),
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
