"""Compute a text model's predictions: labels of sentences, or likelihoods of running text."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import failures, manifest, text_files
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.data import class_names
from quantwatt.jobs import command, gpus
from quantwatt.models.families import load_family
from quantwatt.models.sampling import TextSampling
from quantwatt.score import predictions


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--sampling-name", required=True)
    parser.add_argument("--sampling", required=True, type=TextSampling.from_json, help="the sampling's entry, as JSON")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, help="manifest.json to write; items.json goes to the same folder")
    args = parser.parse_args(argv)
    checkpoint, sampling, folder = manifest.read_json(args.checkpoint), args.sampling, Path(args.output).parent
    fields = {
        "model": checkpoint["model"],
        "method": checkpoint["method"],
        "sampling": args.sampling_name,
        "seed": sampling.seed,
        **{key: getattr(sampling, key) for key in ("texts", "batch_size", "max_length", "stride")},
        "provenance": provenance(("torch", "transformers", "tokenizers", "bitsandbytes")),
    }
    if checkpoint["status"] != "ok":
        predictions.write_none(folder, checkpoint["status"], checkpoint["reason"], fields)
        return
    gpus.claim(args.device)

    import torch

    from quantwatt.inference.checkpoint import load_pipeline
    from quantwatt.models import tokenizers

    torch.set_num_threads(args.threads)
    family = load_family(checkpoint["model_settings"]["family"])
    texts, labels = family.read(sampling.texts)  # ty: ignore[missing-attribute]
    settings, location = checkpoint["model_settings"], manifest.PROJECT / checkpoint["location"]
    tokenizers.check(settings, location, texts[: sampling.items])
    fields["reading"] = text_files.said(sampling.texts)
    fields["texts_sha256"] = predictions.texts_sha256(texts, labels)
    try:
        with failures.expected():
            pipeline = load_pipeline(args.checkpoint, args.device, simulate=True)
            labels, fields["labels"] = class_names.of_outputs(labels, pipeline.pipeline.model, sampling.texts)
            started = time.perf_counter()
            items = pipeline.predict(texts, sampling)
            fields |= {"compute": pipeline.compute, "kernel": pipeline.kernel, "compute_reason": pipeline.reason}
            fields["seconds"] = time.perf_counter() - started
            predictions.write(folder, predictions.judged(items, labels and labels[: len(items)]), fields)
    except failures.ExpectedFailure as failure:
        if failure.status == "degenerate" and not checkpoint["layers"]:
            # The unquantized model itself is broken: no comparison with it would be meaningful.
            where = f"{checkpoint['model']}, sampling {args.sampling_name}"
            raise DataError(f"{where}: {failures.of_the_baseline(failure, checkpoint)}") from failure
        predictions.write_none(folder, failure.status, failure.reason, fields)


if __name__ == "__main__":
    command.run(main)
