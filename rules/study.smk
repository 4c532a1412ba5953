rule study:
    input:
        cells=CELL_FILES,
        traces=cells(f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/power.csv"),
        runs=cells(f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/runs.csv"),
        blocks=cells(f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/blocks.csv"),
    output:
        manifest=f"{RESULTS}/study/manifest.json",
    log:
        f"{LOGS}/study.log",
    benchmark:
        f"{BENCHMARKS}/study.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        study=lambda wildcards: EXPERIMENT["study"],
        grid=lambda wildcards: CELLS,
        results=lambda wildcards: RESULTS,
        code=code("study.py", study),
    message:
        "Write the study's tables"
    shell:
        "python workflow_scripts/study.py {params.study} --results {params.results}"
        " --output {output.manifest} --grid - <<< {params.grid:q} > {log} 2>&1"
