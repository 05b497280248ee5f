localrules:
    fetch,


rule fetch:
    # Runs where Snakemake does, which has a network; the jobs on compute nodes have none.
    output:
        FETCHED_FILE,
    log:
        f"{LOGS}/fetch.log",
    benchmark:
        f"{BENCHMARKS}/fetch.tsv"
    params:
        config=RESOLVED,
    threads: 1
    retries: 0 # whatever the profile says: what it lacks, a licence say, a person must bring
    resources:
        mem_mb=2000,
        runtime=720,
    conda:
        SCORING
    message:
        "Fetching what {EXPERIMENT} needs from the network; progress in {log}"
    shell:
        "{ONLINE_STAR} fetch --config {params.config} > {output} 2> {log}"
