rule measure:
    input:
        checkpoint=plan.pattern("checkpoint"),
        baseline=plan.pattern("checkpoint", method=plan.baseline),
        prompts=ask(plan.prompts, "measure"),
        outputs=ask(plan.computed_by),
    output:
        measurement=plan.pattern("measurement"),
        power=plan.pattern("power"),
        blocks=plan.pattern("blocks"),
        runs=plan.pattern("runs"),
    log:
        plan.log("measure"),
    retries: 0
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        **model_resources("measure", models=2),  # the method and the baseline
    params:
        **parameters("measure"),
        unmeasured=lambda wildcards, input: f"--not-measured {input.outputs}" if input.outputs else "",
        device=DEVICE,
    message:
        "Measure {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run(
            "measure",
            "--checkpoint {input.checkpoint} --baseline {input.baseline} --sampling {params.sampling:q}",
            "--measuring {params.measuring:q} --device {params.device} --threads {threads} {params.unmeasured}",
            "--names {wildcards.model} {wildcards.method} {wildcards.sampling} --output {output.measurement}",
            "--power {output.power} --blocks {output.blocks} --runs {output.runs}",
        )
