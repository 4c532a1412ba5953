"""Export the float model's layers and their inputs for external solvers, which run in separate environments."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command, gpus


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--calibration", required=True, help="the calibration's manifest.json")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", required=True, help="manifest.json to write; the layers' files are written next to it"
    )
    args = parser.parse_args(argv)
    gpus.claim(args.device)

    import torch

    from quantwatt.models.families import load_family
    from quantwatt.quantize import calibration, exchange

    torch.set_num_threads(args.threads)
    model = manifest.read_json(args.model)
    family = load_family(model["settings"]["family"])
    location = manifest.PROJECT / model["location"]
    manifest.verify_files(args.model, model["files"], location)
    denoiser = family.load_denoiser(model["settings"], location)
    samples, calibrated = calibration.load(args.calibration)
    folder, start = Path(args.output).parent, time.perf_counter()
    layers = exchange.export_layers(
        denoiser, family, samples, calibrated["calibration"]["batch_size"], folder, args.device
    )
    names = sorted({layer[part] for layer in layers.values() for part in ("weight", "inputs")})
    manifest.write_json(
        args.output,
        {"model": model["model"], "seconds": time.perf_counter() - start, "calibration": calibrated["cost"],
         "layers": layers,
         "files": manifest.describe_files(folder, names), "provenance": provenance()},
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
