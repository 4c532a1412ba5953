rule fetch:
    output:
        "data/{archive}",
    log:
        f"{LOGS}/fetch/{{archive}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch/{{archive}}.tsv"
    wildcard_constraints:
        archive=missing(datasets.ARCHIVES | datasets.YOURS),
    retries: 2
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        code=code("fetch.py"),
    message:
        "Fetch {output}"
    shell:
        "python workflow_scripts/fetch.py --output {output} > {log} 2>&1"


rule dataset:
    input:
        archive=lambda wildcards: f"data/{datasets.EXTRACTS[wildcards.file].archive}",
    output:
        "data/{file}",
    log:
        f"{LOGS}/dataset/{{file}}.log",
    benchmark:
        f"{BENCHMARKS}/dataset/{{file}}.tsv"
    wildcard_constraints:
        file=missing(datasets.EXTRACTS),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        code=code("fetch.py"),
    message:
        "Make {output}"
    shell:
        "python workflow_scripts/fetch.py --archive {input.archive} --output {output} > {log} 2>&1"
