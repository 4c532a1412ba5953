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
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        **model_resources("quantize"),
    params:
        **parameters("quantize"),
        inputs=ask(inputs.arguments, plan, "quantize"),
        device=DEVICE,
    message:
        "Quantize {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "quantize",
            "--model {input.model} --allocation {input.allocation} {params.inputs} --method-name {wildcards.method}",
            "--method {params.method:q} --metering {params.metering:q} --device {params.device} --threads {threads}",
            "--output {output.manifest}",
        )
