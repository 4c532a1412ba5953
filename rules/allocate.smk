rule sensitivity_job:
    input:
        model=plan.pattern("model"),
        prompts=ask(plan.prompts, "sensitivity_job"),
    output:
        plan.pattern("sensitivity_job"),
    log:
        plan.log("sensitivity_job"),
    benchmark:
        plan.benchmark("sensitivity_job")
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        **model_resources("generate"),
    params:
        **parameters("sensitivity_job"),
        device=DEVICE,
    message:
        "Try layers alone: {wildcards.model}, {wildcards.sensitivity}, job {wildcards.job}"
    shell:
        run(
            "sensitivity_job",
            "--model {input.model} --sensitivity-name {wildcards.sensitivity} --sensitivity {params.sensitivity:q}",
            "--job {wildcards.job} --device {params.device} --threads {threads} --output {output}",
        )


rule sensitivity:
    input:
        unpack(ask(inputs.files, plan, "sensitivity")),
        model=plan.pattern("model"),
    output:
        plan.pattern("sensitivity"),
    log:
        plan.log("sensitivity"),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("sensitivity"),
        jobs=lambda wildcards: plan.path("sensitivity", wildcards).removesuffix(".csv"),
    message:
        "Gather the sensitivity of layers: {wildcards.model}, {wildcards.sensitivity}"
    shell:
        run(
            "sensitivity",
            "--model {input.model} --sensitivity-name {wildcards.sensitivity} --sensitivity {params.sensitivity:q}",
            "--jobs {params.jobs} --output {output}",
        )


rule layer_costs:
    input:
        model=plan.pattern("model"),
        prompts=ask(plan.prompts, "layer_costs"),
    output:
        plan.pattern("costs"),
    log:
        plan.log("layer_costs"),
    retries: 0
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        **model_resources("measure"),
    params:
        **parameters("layer_costs"),
        device=DEVICE,
    message:
        "Measure layers: {wildcards.model}, {wildcards.sensitivity}"
    shell:
        run(
            "layer_costs",
            "--model {input.model} --sensitivity-name {wildcards.sensitivity} --sensitivity {params.sensitivity:q}",
            "--measuring {params.measuring:q} --device {params.device} --threads {threads} --output {output}",
        )


rule candidates:
    input:
        unpack(ask(inputs.files, plan, "candidates")),
        model=plan.pattern("model"),
    output:
        choices=plan.pattern("candidates"),
        table=plan.pattern("candidates_table"),
    log:
        plan.log("candidates"),
    benchmark:
        plan.benchmark("candidates")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("candidates"),
        inputs=ask(inputs.arguments, plan, "candidates"),
    message:
        "Solve integer programs: {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "candidates",
            "--model {input.model} {params.inputs} --method-name {wildcards.method} --method {params.method:q}",
            "--output {output.choices} --table {output.table}",
        )


rule trials:
    input:
        model=plan.pattern("model"),
        candidates=plan.pattern("candidates"),
        prompts=ask(plan.prompts, "trials"),
    output:
        plan.pattern("trials"),
    log:
        plan.log("trials"),
    benchmark:
        plan.benchmark("trials")
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        **model_resources("generate"),
    params:
        **parameters("trials"),
        device=DEVICE,
    message:
        "Try choices on images: {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "trials",
            "--model {input.model} --candidates {input.candidates} --method {params.method:q}",
            "--sensitivity {params.sensitivity:q} --device {params.device} --threads {threads} --output {output}",
        )


rule allocate:
    input:
        unpack(ask(inputs.files, plan, "allocate")),
        model=plan.pattern("model"),
    output:
        plan.pattern("allocation"),
    log:
        plan.log("allocate"),
    benchmark:
        plan.benchmark("allocate")
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        **resources_of("light"),
    params:
        **parameters("allocate"),
        inputs=ask(inputs.arguments, plan, "allocate"),
        of="--method-name {method}",
    message:
        "Allocate formats: {wildcards.model}, {wildcards.method}"
    shell:
        run(
            "allocate",
            "--model {input.model} {params.inputs} {params.of} --method {params.method:q}",
            "--output {output}",
        )


use rule allocate as allocate_component with:
    input:
        model=plan.pattern("model"),
    output:
        plan.pattern("component_allocation"),
    log:
        plan.log("allocate_component"),
    benchmark:
        plan.benchmark("allocate_component")
    params:
        **parameters("allocate_component"),
        inputs="",
        of="--component {component} --method-name {component}",
    message:
        "Allocate formats: {wildcards.component} of {wildcards.model} ({wildcards.hash})"
