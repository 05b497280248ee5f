rule report_page:
    input:
        rules.tables.output,
        all_maps(),
    output:
        EXPERIMENT / "report.html",
    log:
        f"{LOGS}/report_page.log",
    benchmark:
        f"{BENCHMARKS}/report_page.tsv"
    params:
        config=RESOLVED,
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../../envs/star.yaml"
    message:
        "Writing the page of {EXPERIMENT}"
    shell:
        "{STAR} report --config {params.config} --out {output} > {log} 2>&1"
