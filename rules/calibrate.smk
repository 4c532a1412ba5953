rule calibrate:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        prompts=lambda wildcards: source(calibration_of(wildcards)),
    output:
        manifest=f"{RESULTS}/calibration/{{model}}/manifest.json",
        samples=f"{RESULTS}/calibration/{{model}}/samples.safetensors",
    log:
        f"{LOGS}/calibrate/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/calibrate/{{model}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["calibrate"]
    resources:
        mem_mb=memory("calibrate"),
        runtime=CONFIG["runtime_min"]["calibrate"],
        gpu=GPUS,
    params:
        settings=lambda wildcards: canonical_json(calibration_of(wildcards)),
        device=DEVICE,
        # A function of threads is never compared: another wattage or meter shall not calibrate anew.
        metering=lambda wildcards, threads: MEASURING,
        code=code("calibrate.py", family),
    message:
        "Calibrate {wildcards.model}"
    shell:
        "python workflow_scripts/calibrate.py --model {input.model} --calibration {params.settings:q}"
        " --device {params.device} --metering {params.metering:q} --threads {threads} --output {output.manifest} > {log} 2>&1"
