rule calibrate:
    input:
        model=plan.pattern("model"),
        prompts=ask(plan.prompts, "calibrate"),
    output:
        manifest=plan.pattern("calibration"),
        samples=plan.pattern("calibration_samples"),
    log:
        plan.log("calibrate"),
    benchmark:
        plan.benchmark("calibrate")
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["calibrate"]
    resources:
        **model_resources("calibrate"),
    params:
        **parameters("calibrate"),
        of="",
        device=DEVICE,
    message:
        "Calibrate {wildcards.model}"
    shell:
        run(
            "calibrate",
            "--model {input.model} {params.of} --calibration {params.settings:q} --device {params.device}",
            "--metering {params.metering:q} --threads {threads} --output {output.manifest}",
        )


use rule calibrate as calibrate_component with:
    input:
        model=plan.pattern("model"),
        prompts=ask(plan.prompts, "calibrate_component"),
    output:
        manifest=plan.pattern("component_calibration"),
        samples=plan.pattern("component_samples"),
    log:
        plan.log("calibrate_component"),
    benchmark:
        plan.benchmark("calibrate_component")
    params:
        **parameters("calibrate_component"),
        of="--component {component}",
        device=DEVICE,
    message:
        "Calibrate {wildcards.component} of {wildcards.model}"
