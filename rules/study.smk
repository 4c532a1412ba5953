rule study:
    input:
        models=expand(plan.pattern("model"), model=EXPERIMENT["models"]),
        cells=plan.cell_files,
        traces=plan.of_cells("power"),
        runs=plan.of_cells("runs"),
        blocks=plan.of_cells("blocks"),
    output:
        manifest=plan.pattern("study"),
    log:
        plan.log("study"),
    benchmark:
        plan.benchmark("study")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("study"),
        study=lambda wildcards: EXPERIMENT["study"],
        results=lambda wildcards: plan.results,
    message:
        "Write the study's tables"
    shell:
        run(
            "study",
            "{params.study} --results {params.results} --output {output.manifest} --grid - <<< {params.grid:q}",
        )
