rule fetch:
    input:
        ask(inputs.known_hash, plan),
    output:
        "data/{archive}",
    log:
        plan.log("fetch"),
    benchmark:
        plan.benchmark("fetch")
    wildcard_constraints:
        archive=one_of(datasets.missing(datasets.ARCHIVES | datasets.YOURS)),
    retries: 2
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("fetch"),
    message:
        "Fetch {output}"
    shell:
        run("fetch", "--output {output} --sha256 {params.sha256:q}")


rule dataset:
    input:
        archive=lambda wildcards: f"data/{datasets.EXTRACTS[wildcards.file].archive}",
    output:
        "data/{file}",
    log:
        plan.log("dataset"),
    benchmark:
        plan.benchmark("dataset")
    wildcard_constraints:
        file=one_of(datasets.missing(datasets.EXTRACTS)),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("dataset"),
    message:
        "Make {output}"
    shell:
        run("dataset", "--archive {input.archive} --output {output}")
