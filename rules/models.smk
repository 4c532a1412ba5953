rule fetch_weights:
    output:
        f"{RESULTS}/extractors/{{extractor}}.json",
    log:
        f"{LOGS}/fetch_weights/{{extractor}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_weights/{{extractor}}.tsv"
    retries: 1
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["features"],
        runtime=CONFIG["runtime_min"]["features"],
    params:
        settings=lambda wildcards: EXTRACTORS[wildcards.extractor],
        fingerprint=lambda wildcards: EXTRACTOR_FINGERPRINTS[wildcards.extractor],
        code=code("fetch_weights.py", extractor),
    message:
        "Fetch weights: {wildcards.extractor}"
    shell:
        "python workflow_scripts/fetch_weights.py --extractor {wildcards.extractor} --settings {params.settings:q}"
        " --output {output} > {log} 2>&1"


rule model:
    output:
        manifest=f"{RESULTS}/models/{{model}}/manifest.json",
    log:
        f"{LOGS}/model/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/model/{{model}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=CONFIG["memory_mb"]["quantize"],
        runtime=CONFIG["runtime_min"]["quantize"],
    params:
        settings=settings("models"),
        fingerprint=model_fingerprint,
        code=code("model.py", family),
    message:
        "Describe model {wildcards.model}"
    shell:
        "python workflow_scripts/model.py --model {wildcards.model} --settings {params.settings:q}"
        " --output {output.manifest} > {log} 2>&1"
