rule sample_attributes:
    # Prompts of global attributes (question b), under the checkpoints that are compared on them; for the miniature's pickscore task.
    input:
        trained,
        fetched=FETCHED,
        prompts=f"{EXPERIMENT}/prompts/{{task}}/global.jsonl",
        policy=weights(CONFIG.policy.model),
    output:
        f"{RUN}/global/samples/prompts.jsonl",
    log:
        f"{LOGS}/sample_attributes/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/sample_attributes/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        settings=digest("policy", "evaluation"),
        config=RESOLVED,
        images=f"{RUN}/global/samples",
        adapter=adapter_option,
    threads: 4 if GPUS else 1
    resources:
        mem_mb=48000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Sampling prompts of global attributes with {wildcards.method}, seed {wildcards.seed}"
    shell:
        "{STAR} sample --config {params.config} --prompts {input.prompts} --out {params.images} {params.adapter} "
        "--seed {wildcards.seed} --start-over > {log} 2>&1"


rule score_attributes:
    input:
        f"{RUN}/global/samples/prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(wildcards.task),
    output:
        f"{RUN}/global/scores.jsonl",
    log:
        f"{LOGS}/score_attributes/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/score_attributes/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        settings=digest("scorers"),
        config=RESOLVED,
        images=f"{RUN}/global/samples",
    threads: 4 if GPUS else 1
    resources:
        mem_mb=16000 if GPUS else 2000,
        runtime=60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Scoring prompts of global attributes, {wildcards.method}, seed {wildcards.seed}"
    shell:
        "{STAR} score --config {params.config} --task {wildcards.task} --images {params.images} --out {output} > {log} 2>&1"


rule map_statistics:
    input:
        trained,
        fetched=FETCHED,
        prompts=f"{EXPERIMENT}/prompts/{{task}}/global.jsonl",
        policy=weights(CONFIG.policy.model),
    output:
        f"{RUN}/global/map_statistics.csv",
    log:
        f"{LOGS}/map_statistics/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/map_statistics/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        settings=digest("policy", "rollout", "allocation"),
        config=RESOLVED,
        out=f"{RUN}/global",
        adapter=adapter_option,
    threads: 4 if GPUS else 1
    resources:
        mem_mb=48000 if GPUS else 2000,
        runtime=60,
        gpu=GPUS,
    conda:
        "../../envs/star.yaml"
    message:
        "Measuring the allocation maps of {wildcards.method} on prompts of global attributes, seed {wildcards.seed}"
    shell:
        "{STAR} maps --by-prompt --config {params.config} --task {wildcards.task} --method {wildcards.method} "
        "--seed {wildcards.seed} --prompts {input.prompts} --out {params.out} {params.adapter} > {log} 2>&1"


rule evidence:
    input:
        all_trained(),
        all_scores(),
        all_guards(),
        all_attributes(),
    output:
        page=f"{EXPERIMENT}/evidence.md",
        tables=expand(f"{EXPERIMENT}/evidence/tables/{{table}}.csv", table=EVIDENCE_TABLES),
        figures=[
            report(
                f"{EXPERIMENT}/evidence/{name}.svg",
                caption="../report/evidence.rst",
                category="Evidence",
                labels={"question": question},
            )
            for name, question in evidence_figures()
        ],
    log:
        f"{LOGS}/evidence.log",
    benchmark:
        f"{BENCHMARKS}/evidence.tsv"
    params:
        config=RESOLVED,
        out=EXPERIMENT,
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    conda:
        "../../envs/star.yaml"
    message:
        "Comparing the methods of {EXPERIMENT} over seeds"
    shell:
        "{STAR} evidence --config {params.config} --collect --data {params.out}/evidence/data --out {params.out} > {log} 2>&1"
