"""Measure the cost of each layer in each of several formats, per denoiser call, with this device's kernels.

A format without a kernel on this device has no milliseconds and no joules; the table gives the reason.
"""

import argparse
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from quantwatt.allocate.allocation import first_tokens, tried
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.artifacts.errors import DataError
from quantwatt.data import prompts
from quantwatt.jobs import command, gpus
from quantwatt.measuring.meters import Metering


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--sensitivity-name", required=True)
    parser.add_argument("--sensitivity", required=True, type=json.loads, help="the sensitivity's entry, as JSON")
    parser.add_argument(
        "--measuring", required=True, type=json.loads, help="meter, and keys of config.yaml's `measuring`, as JSON"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: all)")
    parser.add_argument("--output", required=True, help=f"CSV file: {', '.join(sensitivity_table.COSTS)}")
    args = parser.parse_args(argv)
    entry, model, measuring = args.sensitivity, manifest.read_json(args.model), args.measuring
    gpus.claim(args.device)

    import torch

    from quantwatt.allocate import layer_costs
    from quantwatt.measuring import instruments
    from quantwatt.models import offload, splits
    from quantwatt.models.families import load_family
    from quantwatt.models.sampling import Sampling

    instruments.set_threads(args.threads)
    location = manifest.PROJECT / model["location"]
    manifest.verify_files(args.model, model["files"], location)
    family = load_family(model["settings"]["family"])
    denoiser = family.load_denoiser(model["settings"], location)
    names = tried(model["layers"], entry, args.sensitivity_name)
    splits.split(denoiser, splits.of_layers(model["layers"], names))
    pipeline = offload.place(family.load(model["settings"], location, denoiser), model["settings"], args.device)
    images = measuring["images_per_batch"] or 1
    sampling = Sampling.from_settings(entry)
    texts = prompts.first(sampling.prompts, images)
    seeds = [sampling.seed + i for i in range(images)]
    shapes = layer_costs.input_shapes(
        denoiser,
        names,
        lambda: family.generate(pipeline, texts, seeds, sampling),  # ty: ignore[missing-attribute]
    )
    if unseen := [name for name in names if name not in shapes]:
        raise DataError(f"layer {unseen[0]}: generating images does not use it; exclude it from the sensitivity.")
    layers: dict[str, Any] = {name: denoiser.get_submodule(name) for name in names}
    meter, reason = instruments.choose_meter(Metering.from_settings(measuring), entry["costs"]["block_s"], args.device)
    with contextlib.closing(meter), torch.no_grad():
        rows = list(
            layer_costs.table(
                layers, shapes, first_tokens(names, entry), entry["candidates"], entry["costs"], meter, args.device,
                instruments.synchronize_of(args.device), measuring["warmup_s"],
            )
        )  # fmt: skip
        reason = reason or (meter.stop().fault if meter.name == "none" else "costs.blocks is 0")
    for row in rows:
        row["reason"] = row["reason"] or (reason if row["joules"] is None else None)
    csv_files.write(args.output, sensitivity_table.COSTS, rows)


if __name__ == "__main__":
    command.run(main)
