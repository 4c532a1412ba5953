rule export_layers:
    input:
        model=plan.pattern("model"),
        calibration=plan.pattern("calibration"),
    output:
        manifest=plan.pattern("exchange"),
    log:
        plan.log("export_layers"),
    benchmark:
        plan.benchmark("export_layers")
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        **model_resources("quantize"),
    params:
        **parameters("export_layers"),
        device=DEVICE,
    message:
        "Export layers: {wildcards.model}"
    shell:
        run(
            "export_layers",
            "--model {input.model} --calibration {input.calibration} --device {params.device}",
            "--threads {threads} --output {output.manifest}",
        )


rule solve_layers:
    input:
        exchange=plan.pattern("exchange"),
        allocation=plan.pattern("allocation"),
    output:
        manifest=plan.pattern("solved"),
    log:
        plan.log("solve_layers"),
    benchmark:
        plan.benchmark("solve_layers")
    wildcard_constraints:
        backend="auto-gptq|gptqmodel",
    conda:
        "../envs/{backend}.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        **resources_of("quantize"),
    params:
        **parameters("solve_layers"),
        python=lambda wildcards: command.library_python(wildcards.backend, WITH_CONDA),
    message:
        "Solve layers by {wildcards.backend}: {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "solve_layers",
            "--backend {wildcards.backend} --exchange {input.exchange} --allocation {input.allocation}",
            "--solver {params.solver:q} --threads {threads} --output {output.manifest}",
            python="{params.python}",
        )
