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
        device=DEVICE,
    message:
        "Calibrate {wildcards.model}"
    shell:
        run(
            "calibrate",
            "--model {input.model} --calibration {params.settings:q} --device {params.device}",
            "--metering {params.metering:q} --threads {threads} --output {output.manifest}",
        )
