rule measure:
    input:
        checkpoint=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
        baseline=f"{RESULTS}/checkpoints/{{model}}/{EXPERIMENT['baseline']}/manifest.json",
        prompts=lambda wildcards: source(sampling_of(wildcards)),
    output:
        measurement=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/measurement.json",
        power=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/power.csv",
        blocks=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/blocks.csv",
        runs=f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/runs.csv",
    log:
        f"{LOGS}/measure/{{model}}/{{method}}/{{sampling}}.log",
    retries: 0
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        mem_mb=memory("measure"),
        runtime=CONFIG["runtime_min"]["measure"],
        gpu=GPUS,
    params:
        sampling=drawing,
        measuring=MEASURING,
        asked=lambda wildcards: "" if wildcards.sampling in MEASURED else "--not-asked",
        device=DEVICE,
        code=code("measure.py", family, formats, kernels, meter),
    message:
        "Measure {wildcards.model}, {wildcards.method}, {wildcards.sampling}"
    shell:
        "python workflow_scripts/measure.py --checkpoint {input.checkpoint} --baseline {input.baseline}"
        " --sampling {params.sampling:q}"
        " --measuring {params.measuring:q} --device {params.device} --threads {threads}"
        " {params.asked} --names {wildcards.model} {wildcards.method} {wildcards.sampling}"
        " --output {output.measurement} --power {output.power} --blocks {output.blocks}"
        " --runs {output.runs} > {log} 2>&1"
