rule tables:
    input:
        cells=CELL_FILES,
        sensitivities=SENSITIVITY_FILES,
    output:
        summary=report(
            f"{RESULTS}/tables/summary.csv", caption="../resources/report/captions/summary.rst", category="Tables"
        ),
        layers=f"{RESULTS}/tables/layers.csv",
        sensitivity=f"{RESULTS}/tables/sensitivity.csv",
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        grid=lambda wildcards: ENTRIES,  # whose {words} are no wildcards
        carbon=f"--carbon {CONFIG['carbon_g_per_kwh']}" if CONFIG["carbon_g_per_kwh"] else "",
        results=lambda wildcards: RESULTS,
        words=lambda wildcards: METRIC_WORDS,  # read from the schemas
        code=code("tables.py"),
    message:
        "Write the tables"
    shell:
        "python workflow_scripts/tables.py --results {params.results} {params.carbon} --summary {output.summary}"
        " --layers {output.layers} --sensitivity {output.sensitivity} --grid - <<< {params.grid:q} > {log} 2>&1"


rule figure:
    input:
        data=lambda wildcards: FIGURES[wildcards.figure],
    output:
        png=report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../resources/report/captions/figure.rst",
            category="Figures",
        ),
        svg=f"{RESULTS}/figures/{{figure}}.svg",
        narrow=f"{RESULTS}/figures/{{figure}}-narrow.svg",
    log:
        f"{LOGS}/figure/{{figure}}.log",
    benchmark:
        f"{BENCHMARKS}/figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        grid=lambda wildcards: CELLS,
        results=lambda wildcards: RESULTS,
        words=lambda wildcards: METRIC_WORDS,  # read from the schemas
        code=code("figure.py", figure),
    message:
        "Draw {wildcards.figure}"
    shell:
        "python workflow_scripts/figure.py {wildcards.figure} --results {params.results} --grid - <<< {params.grid:q}"
        " > {log} 2>&1"


rule report:
    input:
        figures=expand(f"{RESULTS}/figures/{{figure}}{{end}}", figure=FIGURES, end=[".png", ".svg", "-narrow.svg"]),
        tables=rules.tables.output,
        cells=CELL_FILES,
        template="resources/report/template.html",
        evaluation=EVALUATION,
    output:
        f"{RESULTS}/report.html",
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        name=CONFIG["experiment"],
        results=lambda wildcards: RESULTS,
        grid=lambda wildcards: CELLS,
        evaluation=" ".join(f"--evaluation {path}" for path in EVALUATION),
        words=lambda wildcards: METRIC_WORDS,  # read from the schemas
        code=code("report.py"),
    message:
        "Write the report"
    shell:
        "python workflow_scripts/report.py --experiment {params.name} --results {params.results}"
        " {params.evaluation} --template {input.template} --output {output} --grid - <<< {params.grid:q} > {log} 2>&1"
