"""Quantize a model's denoiser with one method, and measure what quantizing itself took."""

import argparse
import json
from pathlib import Path

from quantwatt import command, manifest


def average_bits(layers, reports):
    """Bits per weight (scales and zero points included) and per activation, over the weights of all layers.

    Layers without a report are not quantized and count with 16 bits.
    """
    total = sum(layer["in_features"] * layer["out_features"] for layer in layers.values())
    weight_bits = activation_bits = 0.0
    for name, layer in layers.items():
        share = layer["in_features"] * layer["out_features"] / total
        chosen = reports.get(name, {"weight_bits": 16, "activation_bits": 16})
        weight_bits += share * chosen["weight_bits"]
        activation_bits += share * chosen["activation_bits"]
    return {"weight_bits": round(weight_bits, 4), "activation_bits": round(activation_bits, 4)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--allocation", required=True, help="JSON file of allocate.py")
    parser.add_argument("--calibration", help="the calibration's manifest.json, for solvers that read statistics")
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument(
        "--metering", type=json.loads, default={"meter": "none"}, help="meter and its settings, as JSON"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, help="manifest.json to write; weights.safetensors goes beside it")
    args = parser.parse_args(argv)
    model, allocation = manifest.read_json(args.model), manifest.read_json(args.allocation)
    details = {
        "status": "ok",
        "reason": None,
        "model": model["model"],
        "method": args.method_name,
        "model_settings": model["settings"],
        "location": model["location"],
        "solver": args.method["solver"] and args.method["solver"]["name"],
        "settings": args.method,
    }
    if not allocation:  # the 16-bit baseline is the model itself
        manifest.write_json(
            args.output,
            {**details, **average_bits(model["layers"], {}), "size_bytes": model["denoiser_bytes"], "files": {},
             "layers": {}, "quantize": None, "calibration": None, "provenance": manifest.provenance()},
        )  # fmt: skip
        return

    import torch

    from quantwatt import calibration, checkpoint, meters, sequential
    from quantwatt.families import load_family

    torch.set_num_threads(args.threads)
    family = load_family(model["settings"]["family"])
    location = manifest.PROJECT / model["location"]
    manifest.verify_files(args.model, model["files"], location)
    denoiser = family.load_denoiser(model["settings"], location)
    samples, calibrated = calibration.load(args.calibration) if args.calibration else (None, None)
    batch = calibrated["calibration"]["batch_size"] if calibrated else None
    (quantized, reports), cost = meters.metered(
        lambda: sequential.quantize(denoiser, family, allocation, args.method, samples, batch), args.metering, "cpu"
    )
    checkpoint.save(
        Path(args.output).parent,
        denoiser,
        quantized,
        reports,
        {**details, **average_bits(model["layers"], reports), "quantize": cost,
         "calibration": calibrated and calibrated["cost"],
         "provenance": manifest.provenance(("torch", "diffusers", "transformers", "bitsandbytes"))},
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
