rule fetch_weights:
    output:
        plan.pattern("extractor"),
    log:
        plan.log("fetch_weights"),
    benchmark:
        plan.benchmark("fetch_weights")
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        **resources_of("features"),
    params:
        **parameters("fetch_weights"),
        fingerprint=ask(inputs.fingerprint, plan, "fetch_weights"),
    message:
        "Fetch weights: {wildcards.extractor}"
    shell:
        run(
            "fetch_weights",
            "--extractor {wildcards.extractor} --settings {params.settings:q} --output {output}",
        )


rule model:
    output:
        manifest=plan.pattern("model"),
    log:
        plan.log("model"),
    benchmark:
        plan.benchmark("model")
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        **resources_of("quantize"),
    params:
        **parameters("model"),
        fingerprint=ask(inputs.fingerprint, plan, "model"),
    message:
        "Describe model {wildcards.model}"
    shell:
        run("model", "--model {wildcards.model} --settings {params.settings:q} --output {output.manifest}")


rule fetch_checkpoint:
    output:
        plan.pattern("source"),
    log:
        plan.log("fetch_checkpoint"),
    benchmark:
        plan.benchmark("fetch_checkpoint")
    wildcard_constraints:
        method=one_of(plan.foreign),
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("fetch_checkpoint"),
        fingerprint=ask(inputs.fingerprint, plan, "fetch_checkpoint"),
    message:
        "Fetch the checkpoint of {wildcards.method}"
    shell:
        run("fetch_checkpoint", "--settings {params.settings:q} --output {output}")
