rule tables:
    input:
        cells=plan.cell_files,
        sensitivities=plan.sensitivity_files,
    output:
        summary=report(plan.pattern("summary"), caption="../resources/report/captions/summary.rst", category="Tables"),
        layers=plan.pattern("layers"),
        sensitivity=plan.pattern("sensitivities"),
        pairs=plan.pattern("pairs"),
        formats=plan.pattern("formats"),
        changes=plan.pattern("changes"),
        categories=plan.pattern("categories"),
        adapters=plan.pattern("adapters"),
        components=plan.pattern("components"),
    log:
        plan.log("tables"),
    benchmark:
        plan.benchmark("tables")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("tables"),
        carbon=f"--carbon {CONFIG['carbon_g_per_kwh']}" if CONFIG["carbon_g_per_kwh"] else "",
        results=lambda wildcards: plan.results,
    message:
        "Write the tables"
    shell:
        run(
            "tables",
            "--results {params.results} {params.carbon} --summary {output.summary} --layers {output.layers}",
            "--sensitivity {output.sensitivity} --pairs {output.pairs} --formats {output.formats}",
            "--changes {output.changes} --categories {output.categories} --components {output.components}",
            "--adapters {output.adapters} --grid - <<< {params.grid:q}",
        )


rule recommend:
    input:
        rules.tables.output.summary,
    output:
        json=plan.pattern("recommendation"),
        csv=report(
            plan.pattern("recommendation_table"),
            caption="../resources/report/captions/recommendation.rst",
            category="Tables",
        ),
    log:
        plan.log("recommend"),
    benchmark:
        plan.benchmark("recommend")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("recommend"),
        results=lambda wildcards: plan.results,
    message:
        "Find what to take"
    shell:
        run(
            "recommend",
            "--results {params.results} --summary {input} --limits {params.limits:q} --json {output.json}",
            "--csv {output.csv}",
        )


rule gate:
    input:
        rules.tables.output.summary,
    output:
        json=plan.pattern("gate"),
        markdown=report(plan.pattern("gate_table"), caption="../resources/report/captions/gate.rst", category="Tables"),
    log:
        plan.log("gate"),
    benchmark:
        plan.benchmark("gate")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("gate"),
        results=lambda wildcards: plan.results,
    message:
        "Hold the methods against the policy"
    shell:
        run(
            "gate",
            "--results {params.results} --summary {input} --policy {params.policy:q} --json {output.json}",
            "--markdown {output.markdown}",
        )


rule compare:
    input:
        summary=rules.tables.output.summary,
        earlier=f"{CONFIG['baseline_results']}/tables/summary.csv" if CONFIG["baseline_results"] else [],
    output:
        json=plan.pattern("comparison"),
        markdown=report(
            plan.pattern("comparison_table"),
            caption="../resources/report/captions/comparison.rst",
            category="Tables",
        ),
    log:
        plan.log("compare"),
    benchmark:
        plan.benchmark("compare")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("compare"),
        results=lambda wildcards: plan.results,
        earlier=lambda wildcards: CONFIG["baseline_results"],
    message:
        "Compare with {params.earlier}"
    shell:
        run(
            "compare",
            "--earlier {params.earlier} --results {params.results} --json {output.json} --markdown {output.markdown}",
        )


rule figure:
    input:
        data=lambda wildcards: plan.figures[wildcards.figure],
    output:
        png=report(plan.pattern("figure"), caption="../resources/report/captions/figure.rst", category="Figures"),
        svg=plan.pattern("figure_svg"),
        narrow=plan.pattern("figure_narrow"),
    log:
        plan.log("figure"),
    benchmark:
        plan.benchmark("figure")
    wildcard_constraints:
        figure=one_of(plan.figures),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("figure"),
        results=lambda wildcards: plan.results,
    message:
        "Draw {wildcards.figure}"
    shell:
        run("figure", "{wildcards.figure} --results {params.results} --grid - <<< {params.grid:q}")


rule report:
    input:
        figures=expand([*rules.figure.output], figure=plan.figures),
        tables=rules.tables.output,
        recommendation=rules.recommend.output.json,
        cells=plan.cell_files,
        traces=plan.of_cells("power"),
        page=PAGE,
        widths=BLOCKS,
        evaluation=EVALUATION,
    output:
        plan.pattern("report"),
    log:
        plan.log("report"),
    benchmark:
        plan.benchmark("report")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("report"),
        name=CONFIG["experiment"],
        results=lambda wildcards: plan.results,
        evaluation=" ".join(f"--evaluation {path}" for path in EVALUATION),
    message:
        "Write the report"
    shell:
        run(
            "report",
            "--experiment {params.name} --results {params.results} {params.evaluation}",
            "--protocol {params.protocol:q}",
            "--output {output} --grid - <<< {params.grid:q}",
        )
