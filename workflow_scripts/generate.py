"""Generate a cell's images: prompt i with seed + i, whatever the method."""

import argparse
import json
from pathlib import Path

from quantwatt import command, failures, gpus, images, manifest, prompts
from quantwatt.progress import progress


def batches(pipeline, asked, sampling, description):
    """Yield (images uint8 [b, h, w, 3], prompts, seeds) batch by batch, with a progress bar."""
    with progress(total=len(asked), description=description, unit="image") as bar:
        for first in range(0, len(asked), sampling["batch_size"]):
            batch = asked[first : first + sampling["batch_size"]]
            seeds = [sampling["seed"] + first + i for i in range(len(batch))]
            yield pipeline.generate(batch, seeds, sampling, first), batch, seeds
            bar.update(len(batch))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--sampling-name", required=True)
    parser.add_argument("--sampling", required=True, type=json.loads, help="the sampling's entry, as JSON")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, help="manifest.json to write; PNG shards go beside it")
    args = parser.parse_args(argv)
    checkpoint, sampling, folder = manifest.read_json(args.checkpoint), args.sampling, Path(args.output).parent
    fields = {
        "model": checkpoint["model"],
        "method": checkpoint["method"],
        "sampling": args.sampling_name,
        **{key: sampling[key] for key in ("seed", "steps", "guidance")},
        "provenance": manifest.provenance(("torch", "diffusers", "transformers", "bitsandbytes")),
    }
    if checkpoint["status"] != "ok":
        images.write_no_images(folder, checkpoint["status"], checkpoint["reason"], fields)
        return
    gpus.claim(args.device)

    import torch

    from quantwatt.checkpoint import load_pipeline

    torch.set_num_threads(args.threads)
    asked = prompts.first(sampling, sampling["images"])
    try:
        with failures.expected():
            pipeline = load_pipeline(args.checkpoint, args.device)
            fields |= {"compute": pipeline.compute, "kernel": pipeline.kernel}
            drawn = batches(pipeline, asked, sampling, f"generating {checkpoint['method']}")
            images.write_images(folder, drawn, fields)
    except failures.ExpectedFailure as failure:
        if failure.status == "degenerate" and not checkpoint["layers"]:
            # The float model itself is broken: nothing downstream would mean anything.
            raise manifest.DataError(f"{checkpoint['model']}: {failure.reason}") from failure
        images.write_no_images(folder, failure.status, failure.reason, fields)


if __name__ == "__main__":
    command.run(main)
