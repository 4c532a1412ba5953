"""Pages of results: rules, the files that they write, and the columns of the tables."""

import re

from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import PROJECT
from tools.documentation import code, columns, commands, page, plain, table

FILES = {  # {key of layout.FILES: what the file holds}
    "extractor": "hashes of a network's weights",
    "model": "revision, hashes and layers of a model",
    "calibration": "what the calibration samples are",
    "calibration_samples": "inputs of the denoiser at stratified timesteps",
    "sensitivity_job": "a part of a sensitivity's rows",
    "sensitivity": "what each layer does to the images, alone in each candidate",
    "costs": "time and energy of each layer in each candidate",
    "candidates": "the allocations that the integer programs found",
    "candidates_table": "their bits, costs and scores",
    "trials": "the error of each allocation, tried on images",
    "allocation": "each layer's format",
    "exchange": "layers for a library in an environment of its own",
    "solved": "and what it made of them",
    "checkpoint": "packed weights, and the error of each layer",
    "shared": "weights that methods share which differ in how they draw",
    "source": "a checkpoint that others have quantized, fetched: its files and hashes",
    "component": "packed weights of a component beside the denoiser",
    "component_allocation": "the format of each of its layers",
    "component_calibration": "what its calibration samples are",
    "component_samples": "inputs of the component",
    "images": "an image set: PNG files, prompts, seeds, hashes",
    "part": "the same of a part of a large set",
    "predictions": "a text model's answers",
    "measurement": "time, energy, memory, and how they were measured",
    "power": "the power over time",
    "blocks": "every block, with its seconds, joules and what disturbed it",
    "runs": "every run within the blocks",
    "reference": "real images that scores compare with",
    "reference_features": "their features",
    "features": "features of an image set",
    "score": "a metric's value, its interval, the value of every image",
    "summary": "one row a cell: begin here",
    "layers": "one row a layer",
    "sensitivities": "one row a layer and candidate",
    "pairs": "every two methods compared",
    "formats": "formats at equal bits, ranked",
    "changes": "what a change of one part does",
    "components": "size, bits and memory by component of a pipeline",
    "categories": "scores by category of the prompt",
    "adapters": "how much of an adapter's effect is left",
    "recommendation": "what to take, for programs",
    "recommendation_table": "the same as a table",
    "gate": "the verdict of a policy",
    "gate_table": "the same to read",
    "comparison": "what changed since an earlier result",
    "comparison_table": "the same to read",
    "figure": "a figure",
    "figure_svg": "the same as vectors",
    "figure_narrow": "the same for a narrow page",
    "report": "the report, which needs no other file",
    "study": "tables with the columns of a published study",
}


def rules() -> list[tuple[str, str, str]]:
    """(rule, its file, its message) of every rule that runs a script, in the order of the files."""
    found = []
    for path in sorted((PROJECT / "rules").glob("*.smk")):
        for name, text in re.findall(r"^(?:use )?rule (\w+)(.*?)(?=^(?:use )?rule |\Z)", path.read_text(), re.M | re.S):
            message = re.search(r'message:\s*"([^"]*)"', text)
            found.append((name, path.name, message[1].replace("wildcards.", "") if message else ""))
    return found


def pages() -> dict[str, str]:
    """{file: text} of rules, files and columns."""
    of_rules = [
        [code(name), f"[{file}](../../rules/{file})", plain(message), plain(commands.summary(f"{name}.py"))
         if (commands.SCRIPTS / f"{name}.py").exists() else ""]
        for name, file, message in rules()
    ]  # fmt: skip
    files = [[code(layout.FILES[key]), what] for key, what in FILES.items()]
    parts = ["Below `results/EXPERIMENT/`. Logs are in `logs/`, what each job took in `benchmarks/`.",
             table(("file", "what it holds"), files)]  # fmt: skip
    for name, rows, sentences in columns.described():
        parts += [f"## tables/{name}", f"{rows} A field without a value is empty, never 0.",
                  table(("column", "meaning"), [[code(column), what] for column, what in sentences])]  # fmt: skip
    return {
        "rules.md": page("Rules", "What Snakemake runs, and what it says.",
                         table(("rule", "file", "message", "its script"), of_rules)),
        "results.md": page("Results", *parts),
    }  # fmt: skip
