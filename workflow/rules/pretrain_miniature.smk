rule pretrain_miniature:
    # Makes resources/miniature, which the repository carries already; hours on two cores, resumable. No output is declared:
    # nothing of the repository may be deleted before or after a failed run, and no other rule may trigger this one.
    log:
        f"{CONFIG.results}/pretrain/pretrain.log",
    benchmark:
        f"{CONFIG.results}/pretrain/pretrain.tsv"
    params:
        out="resources/miniature",
        work=f"{CONFIG.results}/pretrain",
    threads: 16
    resources:
        mem_mb=8000,
        runtime=1440,
    conda:
        "../../envs/star.yaml"
    message:
        "Training the miniature base into {params.out}; progress in {log}"
    shell:
        "{STAR} pretrain-miniature --out {params.out} --work {params.work} > {log} 2>&1"
