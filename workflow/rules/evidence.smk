# Prompts of global attributes (question b), under the checkpoints that are compared on them; for the miniature's free captions.


rule sample_attributes:
    input:
        trained,
        fetched=FETCHED,
        prompts=layout.prompts(CONFIG, "{task}", "global"),
        policy=weights(CONFIG.policy.model),
    output:
        RUN.attributes / "samples/prompts.jsonl",
    log:
        f"{LOGS}/sample_attributes/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/sample_attributes/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        key=lambda wildcards: key.sampling_key(CONFIG),
        config=RESOLVED,
        images=str(RUN.attributes / "samples"),
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
        "{GPU_STAR} sample --config {params.config} --prompts {input.prompts} --out {params.images} {params.adapter} "
        "--seed {wildcards.seed} --start-over > {log} 2>&1"


rule score_attributes:
    input:
        RUN.attributes / "samples/prompts.jsonl",
        fetched=FETCHED,
        scorers=lambda wildcards: scorer_weights(main_scorer(CONFIG, wildcards.task)),
    output:
        RUN.attributes / "scores.jsonl",
    log:
        f"{LOGS}/score_attributes/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/score_attributes/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        key=lambda wildcards: key.scoring_key(CONFIG, main_scorer(CONFIG, wildcards.task)),
        config=RESOLVED,
        scorer=lambda wildcards: main_scorer(CONFIG, wildcards.task),
        images=str(RUN.attributes / "samples"),
    threads: 4 if GPUS else 1
    resources:
        mem_mb=16000 if GPUS else 2000,
        runtime=240 if GPUS else 60,
        gpu=GPUS,
    conda:
        SCORING
    message:
        "Scoring prompts of global attributes, {wildcards.method}, seed {wildcards.seed}"
    shell:
        "{GPU_STAR} score --config {params.config} --scorer {params.scorer} --images {params.images} --out {output} "
        "> {log} 2>&1"


use rule maps as map_statistics with:
    input:
        trained,
        fetched=FETCHED,
        prompts=layout.prompts(CONFIG, "{task}", "global"),
        policy=weights(CONFIG.policy.model),
    output:
        RUN.attributes / "map_statistics.csv",
    log:
        f"{LOGS}/map_statistics/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/map_statistics/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        key=lambda wildcards: key.maps_key(settings_of(wildcards)),
        config=RESOLVED,
        out=str(RUN.attributes),
        adapter=adapter_option,
        what="--by-prompt",
    message:
        "Measuring the allocation maps of {wildcards.method} on prompts of global attributes, seed {wildcards.seed}"


rule evidence:
    input:
        all_trained(),
        all_scores(),
        all_guards(),
        all_attributes(),
    output:
        page=EXPERIMENT / "evidence/tables.md",
        tables=directory(EXPERIMENT / "evidence/tables"),
        figures=[
            report(
                EXPERIMENT / f"evidence/figures/{name}.svg",
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
        out=EXPERIMENT / "evidence",
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    conda:
        "../../envs/star.yaml"
    message:
        "Comparing the methods of {EXPERIMENT} over seeds"
    shell:
        "{STAR} evidence --config {params.config} --collect --data {params.out}/data --out {params.out} > {log} 2>&1"
