rule generate:
    input:
        checkpoint=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
        prompts=lambda wildcards: entry("samplings", wildcards.sampling)["prompts"],
    output:
        manifest=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json",
    log:
        f"{LOGS}/generate/{{model}}/{{method}}/{{sampling}}.log",
    benchmark:
        f"{BENCHMARKS}/generate/{{model}}/{{method}}/{{sampling}}.tsv"
    wildcard_constraints:
        sampling=one_of(WHOLE),
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        mem_mb=memory("generate"),
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        sampling=settings("samplings"),
        device=DEVICE,
        part="",
        code=code("generate.py", family, formats, kernels),
    message:
        "Generate images: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/generate.py --checkpoint {input.checkpoint} --sampling-name {wildcards.sampling}"
        " --sampling {params.sampling:q} {params.part} --device {params.device} --threads {threads}"
        " --output {output.manifest} > {log} 2>&1"


use rule generate as generate_part with:
    output:
        manifest=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/part-{{first}}.json",
    log:
        f"{LOGS}/generate/{{model}}/{{method}}/{{sampling}}/part-{{first}}.log",
    benchmark:
        f"{BENCHMARKS}/generate/{{model}}/{{method}}/{{sampling}}/part-{{first}}.tsv"
    wildcard_constraints:
        sampling=one_of(PARTS),
    params:
        sampling=drawing,
        device=DEVICE,
        part=part_argument,
        code=code("generate.py", family, formats, kernels),
    message:
        "Generate images from {wildcards.first}: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"


rule gather_images:
    input:
        parts=part_manifests,
    output:
        manifest=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json",
    log:
        f"{LOGS}/gather_images/{{model}}/{{method}}/{{sampling}}.log",
    wildcard_constraints:
        sampling=one_of(PARTS),
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        first=first_images,
        code=code("gather_images.py"),
    message:
        "Gather images: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/gather_images.py --first {params.first} --output {output.manifest} > {log} 2>&1"


rule predict:
    input:
        checkpoint=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
        texts=lambda wildcards: source(sampling_of(wildcards)),
    output:
        manifest=f"{RESULTS}/predictions/{{model}}/{{method}}/{{sampling}}/manifest.json",
    log:
        f"{LOGS}/predict/{{model}}/{{method}}/{{sampling}}.log",
    benchmark:
        f"{BENCHMARKS}/predict/{{model}}/{{method}}/{{sampling}}.tsv"
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        mem_mb=memory("generate"),
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        sampling=lambda wildcards: canonical_json(sampling_of(wildcards)),
        device=DEVICE,
        code=code("predict.py", family, formats, kernels),
    message:
        "Predict: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/predict.py --checkpoint {input.checkpoint} --sampling-name {wildcards.sampling}"
        " --sampling {params.sampling:q} --device {params.device} --threads {threads} --output {output.manifest}"
        " > {log} 2>&1"
