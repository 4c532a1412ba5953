# FID and KID compare Inception's features where its weights are at hand, else those of the experiment's judge.
FEATURES_OF = {
    "fid": "inception" if CONFIG["inception_weights"] else "judge",
    "kid": "inception" if CONFIG["inception_weights"] else "judge",
    "clip-score": "judge",
}
EXTRACTORS = {
    "judge": canonical_json(EXPERIMENT["judge"]),
    "inception": canonical_json({"weights": CONFIG["inception_weights"]}),
}


def extractor(wildcards):
    return [f"extractors/{wildcards.extractor}"]


def metric(wildcards):
    return [f"metrics/{wildcards.metric}"]


def score_inputs(wildcards):
    """What a metric compares: features with the reference's, features alone, or images with the baseline's."""
    entry("metrics", wildcards.metric)
    cell = "{model}/{method}/{sampling}".format(**wildcards)
    features = FEATURES_OF.get(wildcards.metric)
    if features is None:
        baseline = f"{wildcards.model}/{EXPERIMENT['baseline']}/{wildcards.sampling}"
        return {
            "images": f"{RESULTS}/images/{cell}/manifest.json",
            "baseline": f"{RESULTS}/images/{baseline}/manifest.json",
        }
    if wildcards.metric == "clip-score":
        return {"features": f"{RESULTS}/features/{cell}/{features}.json"}
    return {
        "features": f"{RESULTS}/features/{cell}/{features}.json",
        "reference_features": f"{RESULTS}/features/reference/{features}.json",
    }


def score_arguments(wildcards):
    """`score.py`'s arguments for those inputs."""
    options = [f"--{name.replace('_', '-')} {path}" for name, path in score_inputs(wildcards).items()]
    if wildcards.method == EXPERIMENT["baseline"] and wildcards.metric not in FEATURES_OF:
        options.append("--is-baseline")
    return " ".join(options)


rule reference:
    """Make the set of real images."""
    input:
        code=code("reference.py"),
    output:
        f"{RESULTS}/reference/manifest.json",
    log:
        f"{LOGS}/reference.log",
    benchmark:
        f"{BENCHMARKS}/reference.tsv"
    params:
        settings=canonical_json(EXPERIMENT["reference"]),
    threads: 1
    conda:
        "../envs/base.yaml"
    shell:
        "python workflow_scripts/reference.py --name reference --settings {params.settings:q} --output {output}"
        " > {log} 2>&1"


rule features:
    """Features of a cell's images, once for all metrics that read them."""
    input:
        code=code("features.py", extractor),
        images=f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json",
    output:
        f"{RESULTS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.json",
    log:
        f"{LOGS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.log",
    benchmark:
        f"{BENCHMARKS}/features/{{model}}/{{method}}/{{sampling}}/{{extractor}}.tsv"
    params:
        settings=lambda wildcards: EXTRACTORS[wildcards.extractor],
        device=DEVICE,
    threads: CONFIG["threads"]["features"]
    resources:
        mem_mb=CONFIG["memory_mb"]["features"],
        gpu=GPUS,
    conda:
        "../envs/torch.yaml"
    shell:
        "python workflow_scripts/features.py --images {input.images} --extractor {wildcards.extractor}"
        " --settings {params.settings:q} --device {params.device} --output {output} > {log} 2>&1"


use rule features as reference_features with:
    input:
        code=code("features.py", extractor),
        images=f"{RESULTS}/reference/manifest.json",
    output:
        f"{RESULTS}/features/reference/{{extractor}}.json",
    log:
        f"{LOGS}/features/reference/{{extractor}}.log",
    benchmark:
        f"{BENCHMARKS}/features/reference/{{extractor}}.tsv"


rule score:
    """Score a cell by one metric."""
    input:
        unpack(score_inputs),
        code=code("score.py", metric),
    output:
        f"{RESULTS}/scores/{{model}}/{{method}}/{{sampling}}/{{metric}}.json",
    log:
        f"{LOGS}/score/{{model}}/{{method}}/{{sampling}}/{{metric}}.log",
    benchmark:
        f"{BENCHMARKS}/score/{{model}}/{{method}}/{{sampling}}/{{metric}}.tsv"
    params:
        settings=settings("metrics"),
        inputs=score_arguments,
    threads: 1
    conda:
        "../envs/torch.yaml"
    shell:
        "python workflow_scripts/score.py --metric {wildcards.metric} --settings {params.settings:q} {params.inputs}"
        " --output {output} > {log} 2>&1"
