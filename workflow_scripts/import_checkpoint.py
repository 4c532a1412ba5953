"""Take a checkpoint that others have quantized as a method's: translate its layers, or note what builds them.

The values are kept. The manifest says what each layer has, and how far it is from the model's unquantized weight.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import checkpoint_files, failures, manifest
from quantwatt.artifacts.average_bits import average_bits
from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import methods
from quantwatt.jobs import command

PACKAGES = ("torch", "diffusers", "transformers", "bitsandbytes", "torchao", "optimum-quanto")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--source", required=True, type=Path, help="METHOD.json from fetch_checkpoint.py")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write; the weights go next to it")
    args = parser.parse_args(argv)

    import torch

    from quantwatt.inference import importing, live
    from quantwatt.inference.loaders import Source
    from quantwatt.models.families import load_family

    torch.set_num_threads(args.threads)
    model, source = manifest.read_json(args.model), manifest.read_json(args.source)
    settings = methods.computing_in(model["settings"], args.method)
    entry, location = args.method[methods.FOREIGN], manifest.PROJECT / model["location"]
    manifest.verify_files(args.source, source["files"], manifest.PROJECT / source["location"])
    held = Source(manifest.PROJECT / source["location"], tuple(source["files"]), entry)
    details = {
        "status": "ok", "reason": None, "model": model["model"], "method": args.method_name, "model_settings": settings,
        "location": model["location"], "solver": entry["loader"], "settings": args.method, "source": source,
        "quantize": None, "calibration": None, "provenance": provenance(PACKAGES),
        **methods.kept_adapters(model["settings"], args.method),
    }  # fmt: skip
    family, dtype = load_family(settings["family"]), settings["dtype"]
    if methods.is_live(args.method):
        whole = model["denoiser_bytes"] * BYTES[dtype] // BYTES[model["settings"]["dtype"]]
        try:
            with failures.expected():
                pipeline = live.load(held, family, settings, location, args.device)
        except failures.ExpectedFailure as failure:
            details |= {"status": failure.status, "reason": failure.reason, **average_bits(model["layers"], {}, dtype)}
            manifest.write_json(args.output, {**details, "size_bytes": None, "files": {}, "layers": {}})
            return
        found = live.describe(held, family.denoiser(pipeline), whole, 8 * BYTES[dtype])  # ty: ignore[missing-attribute]
        manifest.write_json(args.output, {**details, **found, "files": {}, "layers": {}})
        return
    denoiser, states, reports = importing.import_checkpoint(held, family, settings, location)
    bits = average_bits({**model["layers"], **reports}, reports, dtype)
    checkpoint_files.save(args.output.parent, denoiser, states, reports, {**details, **bits})


if __name__ == "__main__":
    command.run(main)
