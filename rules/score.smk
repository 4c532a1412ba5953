rule reference:
    input:
        unpack(ask(inputs.files, plan, "reference")),
    output:
        plan.pattern("reference"),
    log:
        plan.log("reference"),
    benchmark:
        plan.benchmark("reference")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("reference"),
        fingerprint=ask(inputs.fingerprint, plan, "reference"),
    message:
        "Make the reference images"
    shell:
        run("reference", "--name reference --settings {params.settings:q} --output {output}")


rule features:
    input:
        unpack(ask(inputs.files, plan, "features")),
    output:
        plan.pattern("features"),
    log:
        plan.log("features"),
    benchmark:
        plan.benchmark("features")
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["features"]
    resources:
        **resources_of("features"),
        gpu=GPUS,
    params:
        **parameters("features"),
        partner=ask(inputs.partner, plan),
        device=DEVICE,
    message:
        "Extract {wildcards.extractor} features: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run(
            "features",
            "--images {input.images} {params.partner} --weights {input.weights}",
            "--device {params.device} --output {output}",
        )


use rule features as reference_features with:
    input:
        images=plan.pattern("reference"),
        weights=plan.pattern("extractor"),
    output:
        plan.pattern("reference_features"),
    log:
        plan.log("reference_features"),
    benchmark:
        plan.benchmark("reference_features")
    message:
        "Extract {wildcards.extractor} features: reference images"


rule score:
    input:
        unpack(ask(inputs.files, plan, "score")),
    output:
        plan.pattern("score"),
    log:
        plan.log("score"),
    benchmark:
        plan.benchmark("score")
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, input: score_memory.of_files(wildcards.metric, dict(input.items())),
        runtime=CONFIG["runtime_min"]["features"],
    params:
        **parameters("score"),
        inputs=ask(inputs.arguments, plan, "score"),
    message:
        "Score {wildcards.metric}: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run("score", "--metric {wildcards.metric} --settings {params.settings:q} {params.inputs} --output {output}")
