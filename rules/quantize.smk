rule quantize:
    input:
        code=code("quantize.py", family, formats, solver),
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        allocation=f"{RESULTS}/allocation/{{model}}/{{method}}.json",
        calibration=calibration_data,
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
        mem_mb=CONFIG["memory_mb"]["quantize"],
    params:
        method=settings("methods"),
        # A function of threads is never compared: another wattage or meter shall not quantize anew.
        metering=lambda wildcards, threads: METERING,
        calibration=lambda wildcards: " ".join(f"--calibration {path}" for path in calibration_data(wildcards)),
    message:
        "Quantize {wildcards.model}, {wildcards.method}"
    shell:
        "python workflow_scripts/quantize.py --model {input.model} --allocation {input.allocation} {params.calibration}"
        " --method-name {wildcards.method} --method {params.method:q} --metering {params.metering:q}"
        " --threads {threads} --output {output.manifest} > {log} 2>&1"
