rule quantize:
    input:
        unpack(quantize_inputs),
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        allocation=f"{RESULTS}/allocation/{{model}}/{{method}}.json",
    output:
        manifest=f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json",
    log:
        f"{LOGS}/quantize/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/quantize/{{model}}/{{method}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        mem_mb=memory("quantize"),
        runtime=CONFIG["runtime_min"]["quantize"],
        gpu=GPUS,
    params:
        method=settings("methods"),
        # A function of threads is never compared: another wattage or meter shall not quantize anew.
        metering=lambda wildcards, threads: MEASURING,
        inputs=quantize_arguments,
        device=DEVICE,
        code=code("quantize.py", family, formats, solver),
    message:
        "Quantize {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/quantize.py --model {input.model} --allocation {input.allocation} {params.inputs}"
        " --method-name {wildcards.method} --method {params.method:q} --metering {params.metering:q}"
        " --device {params.device}"
        " --threads {threads} --output {output.manifest} > {log} 2>&1"
