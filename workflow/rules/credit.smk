rule credit_task:
    # Only tables and figure are declared; the batches beside them stay, and a rerun goes on from there (`--start-over`: unless
    # they belong to other settings).
    input:
        fetched=FETCHED,
        prompts=layout.prompts(CONFIG, "{task}", "train"),
        policy=weights(CONFIG.policy.model),
        scorers=lambda wildcards: scorer_weights(*CONFIG.tasks[wildcards.task].reward),
    output:
        report(CREDIT / "credit.svg", caption="../report/credit.rst", category="Credit", labels={"task": "{task}"}),
        CREDIT / "credit.csv",
        CREDIT / "steps.csv",
        CREDIT / "credit.md",
    log:
        f"{LOGS}/credit/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/credit/{{task}}.tsv"
    params:
        measured_of=lambda wildcards: [key.training_key(run_settings(CONFIG, wildcards.task, m)) for m in methods_of(CONFIG, wildcards.task)],
        config=RESOLVED,
        out=str(CREDIT),
    threads: 8 if GPUS else 1
    resources:
        mem_mb=64000 if GPUS else 3000,
        runtime=2880 if GPUS else 240,
        gpu=GPUS,
    conda:
        SCORING
    message:
        "Measuring the credit of allocations on {wildcards.task}; progress in {log}"
    shell:
        "trap : TERM; {GPU_STAR} credit --config {params.config} --task {wildcards.task} --prompts {input.prompts} "
        "--out {params.out} --start-over > {log} 2>&1"


rule log_credit:
    input:
        rules.credit_task.output,
    output:
        touch(CREDIT / "mlflow.done"),
    log:
        f"{LOGS}/log_credit/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/log_credit/{{task}}.tsv"
    params:
        config=RESOLVED,
        out=str(CREDIT),
    threads: 1
    resources:
        mem_mb=1500,
        runtime=30,
    conda:
        "../../envs/star.yaml"
    message:
        "Logging the credit of {wildcards.task} to MLflow"
    shell:
        "{STAR} log --config {params.config} --task {wildcards.task} --credit {params.out} > {log} 2>&1"
