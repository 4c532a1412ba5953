rule reference:
    input:
        images=reference_images,
    output:
        f"{RESULTS}/reference/manifest.json",
    log:
        f"{LOGS}/reference.log",
    benchmark:
        f"{BENCHMARKS}/reference.tsv"
    conda:
        "../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["light"],
        runtime=CONFIG["runtime_min"]["light"],
    params:
        settings=lambda wildcards: canonical_json(EXPERIMENT["reference"]),  # whose {words} are no wildcards
        fingerprint=lambda wildcards: content((EXPERIMENT["reference"] or {}).get("folder")),
        code=code("reference.py"),
    message:
        "Make the reference images"
    shell:
        "python workflow_scripts/reference.py --name reference --settings {params.settings:q} --output {output}"
        " > {log} 2>&1"


rule features:
    input:
        images=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json",
        weights=f"{RESULTS}/extractors/{{extractor}}.json",
    output:
        f"{RESULTS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.json",
    log:
        f"{LOGS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.log",
    benchmark:
        f"{BENCHMARKS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["features"]
    resources:
        mem_mb=CONFIG["memory_mb"]["features"],
        runtime=CONFIG["runtime_min"]["features"],
        gpu=GPUS,
    params:
        device=DEVICE,
        code=code("features.py", extractor),
    message:
        "Extract {wildcards.extractor} features: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/features.py --images {input.images} --weights {input.weights}"
        " --device {params.device} --output {output} > {log} 2>&1"


use rule features as reference_features with:
    input:
        images=f"{RESULTS}/reference/manifest.json",
        weights=f"{RESULTS}/extractors/{{extractor}}.json",
    output:
        f"{RESULTS}/features/reference/{{extractor}}.json",
    log:
        f"{LOGS}/features/reference/{{extractor}}.log",
    benchmark:
        f"{BENCHMARKS}/features/reference/{{extractor}}.tsv"
    message:
        "Extract {wildcards.extractor} features: reference images"


rule score:
    input:
        unpack(score_inputs),
    output:
        f"{RESULTS}/scores/{{model}}/{{method}}/{{sampling}}/{{metric}}.json",
    log:
        f"{LOGS}/score/{{model}}/{{method}}/{{sampling}}/{{metric}}.log",
    benchmark:
        f"{BENCHMARKS}/score/{{model}}/{{method}}/{{sampling}}/{{metric}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=score_memory,
        runtime=CONFIG["runtime_min"]["features"],
    params:
        settings=settings("metrics"),
        inputs=score_arguments,
        code=code("score.py", metric),
    message:
        "Score {wildcards.metric}: {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/score.py --metric {wildcards.metric} --settings {params.settings:q} {params.inputs}"
        " --output {output} > {log} 2>&1"
