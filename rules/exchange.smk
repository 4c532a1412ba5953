rule export_layers:
    input:
        model=f"{RESULTS}/models/{{model}}/manifest.json",
        calibration=f"{RESULTS}/calibration/{{model}}/manifest.json",
    output:
        manifest=f"{RESULTS}/exchange/{{model}}/manifest.json",
    log:
        f"{LOGS}/export_layers/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/export_layers/{{model}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        mem_mb=memory("quantize"),
        runtime=CONFIG["runtime_min"]["quantize"],
        gpu=GPUS,
    params:
        device=DEVICE,
        code=code("export_layers.py", family),
    message:
        "Export layers: {wildcards.model}"
    shell:
        "python workflow_scripts/export_layers.py --model {input.model} --calibration {input.calibration}"
        " --device {params.device} --threads {threads} --output {output.manifest} > {log} 2>&1"


rule solve_layers:
    input:
        exchange=f"{RESULTS}/exchange/{{model}}/manifest.json",
        allocation=f"{RESULTS}/allocation/{{model}}/{{method}}.json",
    output:
        manifest=f"{RESULTS}/solved/{{backend}}/{{model}}/{{method}}/manifest.json",
    log:
        f"{LOGS}/{{backend}}/{{model}}/{{method}}.log",
    benchmark:
        f"{BENCHMARKS}/{{backend}}/{{model}}/{{method}}.tsv"
    wildcard_constraints:
        backend="auto-gptq|gptqmodel",
    conda:
        "../envs/{backend}.yaml"
    threads: CONFIG["threads"]["quantize"]
    resources:
        mem_mb=CONFIG["memory_mb"]["quantize"],
        runtime=CONFIG["runtime_min"]["quantize"],
    params:
        python=backend_python,
        solver=external_solver,
        code=code("solve_layers.py", formats, solver),
    message:
        "Solve layers by {wildcards.backend}: {wildcards.model}, {wildcards.method}"
    shell:
        "{params.python} workflow_scripts/solve_layers.py --backend {wildcards.backend} --exchange {input.exchange}"
        " --allocation {input.allocation} --solver {params.solver:q} --threads {threads} --output {output.manifest}"
        " > {log} 2>&1"
