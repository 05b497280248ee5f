# One process samples all tested checkpoints of a run: which ones there are depends on task and method, so each pair has a rule.
# `star sample` writes a checkpoint's prompts.jsonl last. The pictures beside it are undeclared: a rerun after a failure keeps
# them (`--start-over`: unless they are of other weights or settings).
for task, method in TESTED:

    rule:
        name:
            f"sample_{task}_{method}"
        input:
            [] if method == "base" else layout.run(CONFIG, task, method, "{seed}").trained,
            fetched=FETCHED,
            prompts=layout.prompts(CONFIG, task, CONFIG.evaluation.split),
            policy=weights(CONFIG.policy.model),
        output:
            sampled(task, method),
        log:
            f"{LOGS}/sample/{task}-{method}-seed{{seed}}.log",
        benchmark:
            f"{BENCHMARKS}/sample/{task}-{method}-seed{{seed}}.tsv"
        params:
            key=lambda wildcards: key.sampling_key(CONFIG),  # when a job needs it: the base may still have to be made
            config=RESOLVED,
            images=of_epochs(layout.Run.samples, task, method),
            adapters="" if method == "base" else ["--adapter", *of_epochs(layout.Run.adapter, task, method)],
        threads: 4 if GPUS else 1
        resources:
            mem_mb=48000 if GPUS else 2000,
            runtime=(240 if GPUS else 60) * len(layout.epochs(CONFIG, task, method)),
            gpu=GPUS,
        conda:
            "../../envs/star.yaml"
        message:
            f"Sampling the {CONFIG.evaluation.split} prompts of {task} with {method}, seed {{wildcards.seed}}"
        shell:
            "{GPU_STAR} sample --config {params.config} --prompts {input.prompts} --out {params.images} {params.adapters} "
            "--seed {wildcards.seed} --start-over > {log} 2>&1"
