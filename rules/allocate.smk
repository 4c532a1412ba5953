rule allocate:
    input:
        code=code("allocate.py", allocation),
        model=f"{RESULTS}/models/{{model}}/manifest.json",
    output:
        f"{RESULTS}/allocation/{{model}}/{{method}}.json",
    log:
        f"{LOGS}/allocate/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/allocate/{{model}}/{{method}}.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    params:
        method=settings("methods", "weights", "activations", "transforms", "allocation"),
    message:
        "Allocate formats: {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/allocate.py --model {input.model} --method-name {wildcards.method}"
        " --method {params.method:q} --output {output} > {log} 2>&1"
