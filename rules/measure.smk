rule measure:
    input:
        code=code("measure.py", family, formats, meter),
        checkpoint=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
        prompts=lambda wildcards: source(sampling_of(wildcards)),
    output:
        measurement=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/measurement.json",
        power=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/power.csv",
        blocks=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/blocks.csv",
    log:
        f"{LOGS}/measure/{{model}}/{{method}}/{{sampling}}.log",
    retries: 0
    conda:
        "../envs/torch.yaml"
    threads: workflow.cores
    resources:
        mem_mb=CONFIG["memory_mb"]["measure"],
        gpu=GPUS,
    params:
        sampling=lambda wildcards: canonical_json(sampling_of(wildcards)),
        measuring=MEASURING,
        device=DEVICE,
    message:
        "Measure {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/measure.py --checkpoint {input.checkpoint} --sampling {params.sampling:q}"
        " --measuring {params.measuring:q} --device {params.device} --threads {threads}"
        " --names {wildcards.model} {wildcards.method} {wildcards.sampling}"
        " --output {output.measurement} --power {output.power} --blocks {output.blocks} > {log} 2>&1"
