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
        cells=CELLS,
        metrics=METRICS,
        samplings=lambda wildcards: canonical_json(EXPERIMENT["samplings"]),  # whose {words} are no wildcards
        sensitivities=canonical_json(SENSITIVITIES),
        baseline=EXPERIMENT["baseline"],
        carbon=f"--carbon {CONFIG['carbon_g_per_kwh']}" if CONFIG["carbon_g_per_kwh"] else "",
        results=lambda wildcards: RESULTS,
        code=code("summarize.py"),
    message:
        "Write the tables"
    shell:
        "python workflow_scripts/summarize.py --results {params.results} --cells {params.cells:q}"
        " --metrics {params.metrics:q} --samplings {params.samplings:q} --baseline {params.baseline}"
        " --sensitivities {params.sensitivities:q} {params.carbon} --summary {output.summary} --layers {output.layers}"
        " --sensitivity {output.sensitivity} > {log} 2>&1"


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
        cells=CELLS,
        results=lambda wildcards: RESULTS,
        code=code("plot.py", figure),
    message:
        "Draw {wildcards.figure}"
    shell:
        "python workflow_scripts/plot.py {wildcards.figure} --results {params.results} --cells {params.cells:q} > {log} 2>&1"


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
        cells=CELLS,
        metrics=METRICS,
        baseline=EXPERIMENT["baseline"],
        evaluation=" ".join(f"--evaluation {path}" for path in EVALUATION),
        code=code("write_report.py"),
    message:
        "Write the report"
    shell:
        "python workflow_scripts/write_report.py --experiment {params.name} --results {params.results}"
        " --cells {params.cells:q} --metrics {params.metrics:q} --baseline {params.baseline} {params.evaluation}"
        " --template {input.template} --output {output} > {log} 2>&1"
