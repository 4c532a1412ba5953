rule quantize:
    input:
        unpack(ask(inputs.files, plan, "quantize")),
        model=plan.pattern("model"),
        allocation=plan.pattern("allocation"),
    output:
        manifest=plan.pattern("checkpoint"),
    log:
        plan.log("quantize"),
    benchmark:
        plan.benchmark("quantize")
    wildcard_constraints:
        method=one_of(name for name in EXPERIMENT["methods"] if name not in [*plan.weights_of, *plan.foreign]),
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        **model_resources("quantize"),
    params:
        **parameters("quantize"),
        inputs=ask(inputs.arguments, plan, "quantize"),
        of="--method-name {method}",
        device=DEVICE,
    message:
        "Quantize {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "quantize",
            "--model {input.model} --allocation {input.allocation} {params.inputs} {params.of}",
            "--method {params.method:q} --metering {params.metering:q} --device {params.device} --threads {threads}",
            "--output {output.manifest}",
        )


use rule quantize as quantize_apart with:
    output:
        manifest=plan.pattern("shared"),
    log:
        plan.log("quantize_apart"),
    benchmark:
        plan.benchmark("quantize_apart")
    wildcard_constraints:
        method=one_of(plan.weights_of),
    params:
        **parameters("quantize_apart"),
        inputs=ask(inputs.arguments, plan, "quantize_apart"),
        of="--method-name {method}",
        device=DEVICE,
    message:
        "Quantize {wildcards.model} for what draws as {wildcards.method} does"


use rule quantize as quantize_component with:
    input:
        unpack(ask(inputs.files, plan, "quantize_component")),
        model=plan.pattern("model"),
        allocation=plan.pattern("component_allocation"),
    output:
        manifest=plan.pattern("component"),
    log:
        plan.log("quantize_component"),
    benchmark:
        plan.benchmark("quantize_component")
    params:
        **parameters("quantize_component"),
        inputs=ask(inputs.arguments, plan, "quantize_component"),
        of="--component {component} --method-name {hash}",
        device=DEVICE,
    message:
        "Quantize {wildcards.component} of {wildcards.model} ({wildcards.hash})"


rule share_weights:
    input:
        unpack(ask(inputs.files, plan, "share_weights")),
    output:
        manifest=plan.pattern("checkpoint"),
    log:
        plan.log("share_weights"),
    wildcard_constraints:
        method=one_of(plan.weights_of),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("share_weights"),
        inputs=ask(inputs.arguments, plan, "share_weights"),
    message:
        "Share weights: {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "share_weights",
            "{params.inputs} --method-name {wildcards.method} --method {params.method:q}",
            "--output {output.manifest}",
        )


rule import_checkpoint:
    input:
        model=plan.pattern("model"),
        source=plan.pattern("source"),
    output:
        manifest=plan.pattern("checkpoint"),
    log:
        plan.log("import_checkpoint"),
    benchmark:
        plan.benchmark("import_checkpoint")
    wildcard_constraints:
        method=one_of(plan.foreign),
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        **model_resources("quantize"),
    params:
        **parameters("import_checkpoint"),
        python=ask(plan.python),
        device=DEVICE,
    message:
        "Take the checkpoint of {wildcards.method}: {wildcards.model}"
    shell:
        run(
            "import_checkpoint",
            "--model {input.model} --source {input.source} --method-name {wildcards.method}",
            "--method {params.method:q} --device {params.device} --threads {threads} --output {output.manifest}",
            python="{params.python}",
        )
