"""Record the calibration set: denoiser inputs at stratified timesteps of the float trajectory, or texts.

With --component: what that component of the pipeline receives.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import manifest, text_files
from quantwatt.artifacts.provenance import provenance
from quantwatt.data import prompts
from quantwatt.jobs import command, gpus
from quantwatt.measuring.meters import Metering


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--component", help="name of the component whose inputs are recorded (default: the denoiser)")
    parser.add_argument("--calibration", required=True, type=json.loads, help="the experiment's calibration entry")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--metering", type=Metering.from_json, default=Metering(), help="meter and its settings, as JSON"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", required=True, help="manifest.json to write; samples.safetensors is written next to it"
    )
    args = parser.parse_args(argv)
    gpus.claim(args.device)

    import torch

    from quantwatt.measuring import meters
    from quantwatt.models import components, offload, tokenizers
    from quantwatt.models.families import load_family
    from quantwatt.models.sampling import Calibration, TextSampling
    from quantwatt.quantize import calibration

    torch.set_num_threads(args.threads)
    model = manifest.read_json(args.model)
    family = load_family(model["settings"]["family"])
    location = manifest.PROJECT / model["location"]
    manifest.verify_files(args.model, model["files"], location)
    if "texts" in args.calibration:
        entry = TextSampling.from_settings(args.calibration)
        record, path, texts = calibration.record_texts, entry.texts, family.read(entry.texts)[0]  # ty: ignore[missing-attribute]
    else:
        entry = Calibration.from_settings(args.calibration)
        record, path, texts = calibration.record, entry.prompts, prompts.read_and_say(entry.prompts)
    if args.component:
        part = components.load(family, model["settings"], location, args.component)
        record = functools.partial(calibration.record_component, part, args.component)
    tokenizers.check(model["settings"], location, texts)
    pipeline = offload.place(family.load(model["settings"], location), model["settings"], args.device)
    (samples, rows), cost, _ = meters.metered(
        lambda: record(family, pipeline, texts, entry),  # ty: ignore[invalid-argument-type]
        args.metering,
        args.device,
    )
    calibration.save(
        Path(args.output).parent,
        {name: tensor.cpu() for name, tensor in samples.items()},
        rows,
        {
            "model": model["model"],
            "calibration": args.calibration,
            "reading": text_files.said(path),
            "cost": cost,
            "provenance": provenance(),
        },
    )


if __name__ == "__main__":
    command.run(main)
