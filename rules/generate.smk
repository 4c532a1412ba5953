rule generate:
    input:
        code=code("generate.py", family, formats, kernels),
        checkpoint=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
        prompts=lambda wildcards: entry("samplings", wildcards.sampling)["prompts"],
    output:
        manifest=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json",
    log:
        f"{LOGS}/generate/{{model}}/{{method}}/{{sampling}}.log",
    benchmark:
        f"{BENCHMARKS}/generate/{{model}}/{{method}}/{{sampling}}.tsv"
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["generate"]
    resources:
        mem_mb=CONFIG["memory_mb"]["generate"],
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        sampling=settings("samplings"),
        device=DEVICE,
    message:
        "Generate images: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/generate.py --checkpoint {input.checkpoint} --sampling-name {wildcards.sampling}"
        " --sampling {params.sampling:q} --device {params.device} --threads {threads} --output {output.manifest}"
        " > {log} 2>&1"


rule predict:
    input:
        code=code("predict.py", family, formats, kernels),
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
        mem_mb=CONFIG["memory_mb"]["generate"],
        runtime=CONFIG["runtime_min"]["generate"],
        gpu=GPUS,
    params:
        sampling=lambda wildcards: canonical_json(sampling_of(wildcards)),
        device=DEVICE,
    message:
        "Predict: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/predict.py --checkpoint {input.checkpoint} --sampling-name {wildcards.sampling}"
        " --sampling {params.sampling:q} --device {params.device} --threads {threads} --output {output.manifest}"
        " > {log} 2>&1"
