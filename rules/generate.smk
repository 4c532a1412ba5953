rule generate:
    input:
        checkpoint=plan.pattern("checkpoint"),
        prompts=ask(plan.prompts, "generate"),
    output:
        manifest=plan.pattern("images"),
    log:
        plan.log("generate"),
    benchmark:
        plan.benchmark("generate")
    wildcard_constraints:
        sampling=one_of(plan.whole_sets),
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        **model_resources("generate"),
    params:
        **parameters("generate"),
        part="",
        python=ask(plan.python),
        device=DEVICE,
    message:
        "Generate images: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run(
            "generate",
            "--checkpoint {input.checkpoint} --sampling-name {wildcards.sampling} --sampling {params.sampling:q}",
            "{params.part} --device {params.device} --threads {threads} --output {output.manifest}",
            python="{params.python}",
        )


use rule generate as generate_part with:
    output:
        manifest=plan.pattern("part"),
    log:
        plan.log("generate_part"),
    benchmark:
        plan.benchmark("generate_part")
    wildcard_constraints:
        sampling=one_of(plan.parts),
    params:
        **parameters("generate_part"),
        part=ask(inputs.part, plan),
        python=ask(plan.python),
        device=DEVICE,
    message:
        "Generate images from {wildcards.first}: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"


rule gather_images:
    input:
        unpack(ask(inputs.files, plan, "gather_images")),
    output:
        manifest=plan.pattern("images"),
    log:
        plan.log("gather_images"),
    wildcard_constraints:
        sampling=one_of(plan.parts),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("gather_images"),
        first=ask(inputs.first_images, plan),
    message:
        "Gather images: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run("gather_images", "--first {params.first} --output {output.manifest}")


rule predict:
    input:
        checkpoint=plan.pattern("checkpoint"),
        texts=ask(plan.texts, "predict"),
    output:
        manifest=plan.pattern("predictions"),
    log:
        plan.log("predict"),
    benchmark:
        plan.benchmark("predict")
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        **model_resources("generate"),
    params:
        **parameters("predict"),
        device=DEVICE,
    message:
        "Predict: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        run(
            "predict",
            "--checkpoint {input.checkpoint} --sampling-name {wildcards.sampling} --sampling {params.sampling:q}",
            "--device {params.device} --threads {threads} --output {output.manifest}",
        )
