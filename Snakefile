from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "resources/report/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/calibrate.smk"
include: "rules/allocate.smk"
include: "rules/exchange.smk"
include: "rules/quantize.smk"
include: "rules/generate.smk"
include: "rules/measure.smk"
include: "rules/score.smk"
include: "rules/report.smk"
include: "rules/study.smk"


localrules:
    all,
    fetch,  # where jobs run there may be no network: nothing else fetches
    model,
    fetch_weights,


rule all:
    default_target: True
    input:
        plan.pattern("report"),
        plan.decided,
        [plan.pattern("study")] if EXPERIMENT["study"] else [],
