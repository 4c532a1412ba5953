rule sensitivity_job:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        prompts=lambda wildcards: entry("sensitivities", wildcards.sensitivity)["prompts"],
    output:
        f"{RESULTS}/sensitivity/{{model}}/{{sensitivity}}/job-{{job}}.csv",
    log:
        f"{LOGS}/sensitivity/{{model}}/{{sensitivity}}/job-{{job}}.log",
    benchmark:
        f"{BENCHMARKS}/sensitivity/{{model}}/{{sensitivity}}/job-{{job}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        mem_mb=memory("generate"),
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        sensitivity=trying,
        device=DEVICE,
        code=code("sensitivity_job.py", family, tried_formats),
    message:
        "Try layers alone: {wildcards.model}, {wildcards.sensitivity}, job {wildcards.job}"
    shell:
        "python workflow_scripts/sensitivity_job.py --model {input.model} --sensitivity-name {wildcards.sensitivity}"
        " --sensitivity {params.sensitivity:q} --job {wildcards.job} --device {params.device} --threads {threads}"
        " --output {output} > {log} 2>&1"


rule sensitivity:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        tables=sensitivity_jobs,
    output:
        f"{RESULTS}/sensitivity/{{model}}/{{sensitivity}}.csv",
    log:
        f"{LOGS}/sensitivity/{{model}}/{{sensitivity}}.log",
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        sensitivity=trying,
        jobs=lambda wildcards: f"{RESULTS}/sensitivity/{wildcards.model}/{wildcards.sensitivity}",
        code=code("sensitivity.py"),
    message:
        "Gather the sensitivity of layers: {wildcards.model}, {wildcards.sensitivity}"
    shell:
        "python workflow_scripts/sensitivity.py --model {input.model}"
        " --sensitivity-name {wildcards.sensitivity} --sensitivity {params.sensitivity:q} --jobs {params.jobs}"
        " --output {output} > {log} 2>&1"


rule layer_costs:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        prompts=lambda wildcards: entry("sensitivities", wildcards.sensitivity)["prompts"],
    output:
        f"{RESULTS}/costs/{{model}}/{{sensitivity}}.csv",
    log:
        f"{LOGS}/costs/{{model}}/{{sensitivity}}.log",
    retries: 0
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        mem_mb=memory("measure"),
        runtime=CONFIG["runtime_min"]["measure"],
        gpu=GPUS,
    params:
        sensitivity=costing,
        measuring=MEASURING,
        device=DEVICE,
        code=code("layer_costs.py", family, tried_formats, tried_kernels, meter),
    message:
        "Measure layers: {wildcards.model}, {wildcards.sensitivity}"
    shell:
        "python workflow_scripts/layer_costs.py --model {input.model} --sensitivity-name {wildcards.sensitivity}"
        " --sensitivity {params.sensitivity:q} --measuring {params.measuring:q} --device {params.device}"
        " --threads {threads} --output {output} > {log} 2>&1"


rule candidates:
    input:
        unpack(program_inputs),
        model=f"{RESULTS}/models/{{model}}/manifest.json",
    output:
        choices=f"{RESULTS}/allocation/{{model}}/{{method}}/candidates.json",
        table=f"{RESULTS}/allocation/{{model}}/{{method}}/candidates.csv",
    log:
        f"{LOGS}/candidates/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/candidates/{{model}}/{{method}}.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        method=formatting,
        inputs=lambda wildcards: arguments(program_inputs(wildcards)),
        code=code("candidates.py"),
    message:
        "Solve integer programs: {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/candidates.py --model {input.model} {params.inputs}"
        " --method-name {wildcards.method} --method {params.method:q}"
        " --output {output.choices} --table {output.table} > {log} 2>&1"


rule trials:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        candidates=f"{RESULTS}/allocation/{{model}}/{{method}}/candidates.json",
        prompts=lambda wildcards: sensitivity_of(wildcards)["prompts"],
    output:
        f"{RESULTS}/allocation/{{model}}/{{method}}/trials.csv",
    log:
        f"{LOGS}/trials/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/trials/{{model}}/{{method}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        mem_mb=memory("generate"),
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        method=formatting,
        sensitivity=choosing,
        device=DEVICE,
        code=code("trials.py", family, formats),
    message:
        "Try choices on images: {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/trials.py --model {input.model} --candidates {input.candidates}"
        " --method {params.method:q} --sensitivity {params.sensitivity:q} --device {params.device}"
        " --threads {threads} --output {output} > {log} 2>&1"


rule allocate:
    input:
        unpack(allocate_inputs),
        model=f"{RESULTS}/models/{{model}}/manifest.json",
    output:
        f"{RESULTS}/allocation/{{model}}/{{method}}.json",
    log:
        f"{LOGS}/allocate/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/allocate/{{model}}/{{method}}.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        method=allocating,
        inputs=lambda wildcards: arguments(allocate_inputs(wildcards)),
        code=code("allocate.py", allocation),
    message:
        "Allocate formats: {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/allocate.py --model {input.model} {params.inputs}"
        " --method-name {wildcards.method} --method {params.method:q} --output {output} > {log} 2>&1"
