"""Quantize each of some layers alone in each of several formats, and measure the loss of images and outputs.

Where the sensitivity has ranges of steps, a layer is quantized in the steps of one range at a time.

A layer is scored only by the metrics that the objectives use for its group; other metrics are empty. Images take
longest and are generated only for layers with an image metric.
An interrupted run resumes: finished rows are kept next to the table until the table is complete.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.allocate.allocation import tried
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.artifacts.instructions import described
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import methods
from quantwatt.config.objectives import metric_of
from quantwatt.data import prompts
from quantwatt.jobs import command, dependencies, gpus
from quantwatt.jobs.progress import progress
from quantwatt.models.sampling import Sampling


def depends_on(
    model: Mapping[str, Any],
    entry: Mapping[str, Any],
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    prompts: Sequence[str],
    device: str,
) -> str:
    """Hash everything that a job's rows depend on, including the prompts, the code and the device."""
    formats = methods.formats_of(entry["candidates"].values())
    plugins = [f"families/{model['settings']['family']}", *(f"formats/{name}" for name in sorted(formats))]
    code = dependencies.digest(Path(__file__).name, tuple(plugins))
    contents = {"files": model["files"], "settings": model["settings"], "entry": entry, "layers": layers, "code": code,
                "pictures": [described(prompt) for prompt in prompts],
                "prompts": prompts, "device": device, "versions": provenance()["versions"]}  # fmt: skip
    return hashlib.sha256(manifest.canonical_json(contents).encode()).hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--sensitivity-name", required=True)
    parser.add_argument("--sensitivity", required=True, type=json.loads, help="the sensitivity's entry, as JSON")
    parser.add_argument("--job", type=int, default=0, help="index of this job: it measures layers job, job + jobs, ...")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, type=Path, help=f"CSV file: {', '.join(sensitivity_table.COLUMNS)}")
    args = parser.parse_args(argv)
    entry, model = args.sensitivity, manifest.read_json(args.model)
    layers = list(tried(model["layers"], entry, args.sensitivity_name).items())[args.job :: entry["jobs"]]
    where = f"sensitivities.{args.sensitivity_name}"
    metrics = {
        name: {metric_of(objective, name, layer, where) for objective in entry["objectives"]} for name, layer in layers
    }
    spans = sensitivity_table.ranges_of(entry)
    wanted = [(name, candidate, span) for name, _ in layers for candidate in entry["candidates"] for span in spans]
    sampling = Sampling.from_settings(entry)
    texts = prompts.read_and_say(sampling.prompts)[: sampling.images]
    key = depends_on(model, entry, layers, texts, args.device)
    done = sensitivity_table.Unfinished(args.output.with_suffix(".unfinished"), key)
    if len(done.rows) < len(wanted):
        gpus.claim(args.device)
        import torch

        from quantwatt.allocate.sensitivity import Probe
        from quantwatt.models import tokenizers
        from quantwatt.models.families import load_family

        torch.set_num_threads(args.threads)
        location = manifest.PROJECT / model["location"]
        manifest.verify_files(args.model, model["files"], location)
        tokenizers.check(model["settings"], location, texts)
        family: Any = load_family(model["settings"]["family"])  # of images: of texts no sensitivity is planned
        probe = Probe(family, model, entry, dict(layers), args.device)
        probe.draw_float(texts)
        for name, candidate, span in progress(wanted[len(done.rows) :], description="trying layers", unit="format"):
            done.add(probe.row(name, candidate, entry["candidates"][candidate], metrics[name], span))
    csv_files.write(args.output, sensitivity_table.COLUMNS, done.rows)
    done.path.unlink()


if __name__ == "__main__":
    command.run(main)
