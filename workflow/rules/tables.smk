rule tables:
    input:
        all_trained(),
        all_scores(),
        all_guards(),
    output:
        expand(f"{EXPERIMENT}/tables/{{table}}.{{form}}", table=TABLES, form=["md", "tex"]),
        *[
            report(f"{EXPERIMENT}/tables/{table}.csv", caption=f"../report/{table}.rst", category="Tables")
            for table in TABLES
        ],
        *[
            report(f"{EXPERIMENT}/figures/{figure}.svg", caption=f"../report/{figure}.rst", category="Figures")
            for figure in FIGURES
        ],
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    params:
        config=RESOLVED,
        out=EXPERIMENT,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    conda:
        "../../envs/star.yaml"
    message:
        "Writing the tables and figures of {EXPERIMENT}"
    shell:
        "{STAR} tables --config {params.config} --out {params.out} > {log} 2>&1"
