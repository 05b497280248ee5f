rule train:
    # Snakemake deletes the declared outputs before a rerun and after a failure. Only the checksums of the finished adapters
    # are declared; metrics.jsonl and checkpoints/ lie beside them, and a rerun continues from there (`--start-over`: unless
    # they belong to other settings).
    input:
        fetched=FETCHED,
        prompts=layout.prompts(CONFIG, "{task}", "train"),
        policy=weights(CONFIG.policy.model),
        scorers=lambda wildcards: scorer_weights(*CONFIG.tasks[wildcards.task].reward),
    output:
        RUN.trained,
    log:
        f"{LOGS}/train/{{task}}-{{method}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/train/{{task}}-{{method}}-seed{{seed}}.tsv"
    params:
        key=lambda wildcards: key.training_key(settings_of(wildcards)),
        epochs=epochs,
        config=RESOLVED,
        run=str(RUN.folder),
        adapters=adapter_files,
    wildcard_constraints:
        method="|".join(METHODS),
    priority: 10
    threads: (8 if GPUS else 1) * PROCESSES // MACHINES
    resources:
        mem_mb=(64000 if GPUS else 3000) * PROCESSES // MACHINES,
        runtime=2880 if GPUS else 120,
        gpu=GPUS * PROCESSES,
        nodes=MACHINES,
        # The plugin for SLURM runs a job by one srun on one machine, unless it is one that calls srun itself.
        **({"mpi": "srun", "tasks": MACHINES, "tasks_per_gpu": 0} if MACHINES > 1 else {}),
    conda:
        SCORING
    message:
        "Training {wildcards.method} on {wildcards.task}, seed {wildcards.seed}; progress in {log}"
    shell:
        # SIGTERM reaches the shell too. Without the trap it would end there and then, and with it, unfinished, the training.
        "trap : TERM; {TRAIN} --config {params.config} --task {wildcards.task} --method {wildcards.method} "
        "--seed {wildcards.seed} --prompts {input.prompts} --out {params.run} --start-over > {log} 2>&1 && "
        "sha256sum {params.adapters} > {output}"
