localrules:  # one machine writes MLflow's database: file locks of network file systems are not to be relied on
    log,
    log_tables,
    log_credit,


rule log:
    input:
        trained,
        scores=lambda wildcards: scores(wildcards.task, wildcards.method, wildcards.seed),
        guards=lambda wildcards: of_epochs(layout.Run.guards, wildcards.task, wildcards.method, wildcards.seed),
        maps=lambda wildcards: maps(wildcards.task, wildcards.method, wildcards.seed),
    output:
        touch(RUN.logged),
    log:
        f"{LOGS}/log/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/log/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        config=RESOLVED,
        run=str(RUN.folder),
    threads: 1
    resources:
        mem_mb=1500,
        runtime=30,
    conda:
        "../../envs/star.yaml"
    message:
        "Logging {wildcards.method} on {wildcards.task}, seed {wildcards.seed}, to MLflow"
    shell:
        "{STAR} log --config {params.config} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed} "
        "--run {params.run} > {log} 2>&1"


rule log_tables:
    input:
        rules.tables.output,
    output:
        touch(f"{EXPERIMENT}/mlflow.done"),
    log:
        f"{LOGS}/log_tables.log",
    benchmark:
        f"{BENCHMARKS}/log_tables.tsv"
    params:
        config=RESOLVED,
    threads: 1
    resources:
        mem_mb=1500,
        runtime=30,
    conda:
        "../../envs/star.yaml"
    message:
        "Logging the tables and figures of {EXPERIMENT} to MLflow"
    shell:
        "{STAR} log --config {params.config} --tables > {log} 2>&1"
