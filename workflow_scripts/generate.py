"""Generate a cell's images: prompt i uses seed + i in every method."""

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts import component_files, failures, image_parts, images, manifest, text_files
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import methods
from quantwatt.data import prompts
from quantwatt.jobs import command, gpus
from quantwatt.jobs.progress import progress
from quantwatt.models import repeat
from quantwatt.models.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np

    from quantwatt.models.trajectory import Recorder

Batch = tuple["np.ndarray", Sequence[str], Sequence[int]]  # images uint8 [b, h, w, 3], prompts, seeds


def batches(
    pipeline: Any, part: range, sampling: Sampling, description: str, recorder: "Recorder | None" = None
) -> Iterator[Batch]:
    """Yield (images uint8 [b, h, w, 3], prompts, seeds) of a range of images, batch by batch, with a progress bar.

    Args:
        recorder: keeps latents of each image; None: none are kept.
    """
    asked = prompts.first(sampling.prompts, part.stop, sampling.cycle)
    with progress(total=len(part), description=description, unit="image") as bar:
        for first in part[:: sampling.batch_size]:
            numbers = range(first, min(first + sampling.batch_size, part.stop))
            batch, seeds = asked[first : numbers.stop], [sampling.seed + number for number in numbers]
            kept = recorder.drawing(pipeline.pipeline.scheduler, seeds) if recorder else contextlib.nullcontext()
            with kept:
                pixels = pipeline.generate(batch, seeds, sampling, first)
            yield pixels, batch, seeds
            bar.update(len(batch))


def counted(drawn: Iterable[Batch], pipeline: Any, fields: dict[str, Any]) -> Iterator[Batch]:
    """Yield the batches of `drawn`; fields["calls"] is set to what the pipeline's cache has skipped in them."""
    drawn, fields["calls"] = iter(drawn), {**pipeline.calls, "asked": 0, "skipped": 0}
    while True:
        before = pipeline.calls
        batch = next(drawn, None)
        if batch is None:
            return
        for key in ("asked", "skipped"):
            fields["calls"][key] += pipeline.calls[key] - before[key]
        yield batch


def repeated(
    drawn: Iterable[Batch], pipeline: Any, sampling: Sampling, where: str, fields: dict[str, Any]
) -> Iterator[Batch]:
    """Yield the batches of `drawn`; generate the first batch again and compare.

    fields["repeat_psnr"] is set to the result of `quantwatt.models.repeat.check`.

    Raises:
        DataError: the second generation gives different images.
    """
    for number, (pixels, asked, seeds) in enumerate(drawn):
        if number == 0:
            again = pipeline.generate(asked, seeds, sampling)
            fields["repeat_psnr"] = repeat.check(pixels, again, seeds, where)
        yield pixels, asked, seeds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--sampling-name", required=True)
    parser.add_argument("--sampling", required=True, type=Sampling.from_json, help="the sampling's entry, as JSON")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("FIRST", "STOP"), help="range of the sampling's images (default: all)"
    )
    parser.add_argument("--output", required=True, help="manifest.json or part-FIRST.json; PNG shards go next to it")
    args = parser.parse_args(argv)
    checkpoint, sampling, folder = manifest.read_json(args.checkpoint), args.sampling, Path(args.output).parent
    method = checkpoint.get("settings", {})
    is_the_model = not component_files.quantized_layers(checkpoint) and not methods.is_foreign(method)
    part = range(*args.part) if args.part else None
    if part is not None:
        image_parts.check_start(part, sampling.batch_size)
    fields = {
        "model": checkpoint["model"],
        "method": checkpoint["method"],
        "sampling": args.sampling_name,
        **{key: getattr(sampling, key) for key in ("seed", "steps", "guidance")},
        **{key: method[key] for key in methods.DRAWING if key in method},
        "provenance": provenance(("torch", "diffusers", "transformers", "bitsandbytes")),
    }
    if checkpoint["status"] != "ok":
        images.write_no_images(folder, checkpoint["status"], checkpoint["reason"], fields, part)
        return
    prompts.read_and_say(sampling.prompts)  # report problems of the prompts before the model is loaded
    fields["reading"] = text_files.said(sampling.prompts)
    gpus.claim(args.device)
    command.keep_memory()

    import torch

    from quantwatt.inference.checkpoint import load_pipeline
    from quantwatt.models import tokenizers, trajectory

    torch.set_num_threads(args.threads)
    numbers = range(sampling.images) if part is None else part
    where = f"{checkpoint['model']}, sampling {args.sampling_name}"
    texts = [*prompts.first(sampling.prompts, numbers.stop, sampling.cycle)[numbers.start :], sampling.negative_prompt]
    tokenizers.check(checkpoint["model_settings"], manifest.PROJECT / checkpoint["location"], texts)
    try:
        with failures.expected():
            pipeline = load_pipeline(args.checkpoint, args.device, simulate=True)
            fields |= {
                "compute": pipeline.compute,
                "kernel": pipeline.kernel,
                "compute_reason": pipeline.reason,
                "safety_checker": pipeline.censor,
            }
            recorder = trajectory.Recorder(sampling.trajectory) if sampling.trajectory else None
            drawn = batches(pipeline, numbers, sampling, f"generating {checkpoint['method']}", recorder)
            drawn = counted(drawn, pipeline, fields) if pipeline.cache else drawn
            if is_the_model and numbers.start == 0:
                drawn = repeated(drawn, pipeline, sampling, where, fields)
            images.write_images(folder, drawn, fields, part, latents=recorder.kept if recorder else None)
    except failures.ExpectedFailure as failure:
        if failure.status == "degenerate" and is_the_model and not methods.draws_its_own_way(method):
            # The unquantized model itself is broken: no comparison with it would be meaningful.
            raise DataError(f"{where}: {failures.of_the_baseline(failure, checkpoint)}") from failure
        images.write_no_images(folder, failure.status, failure.reason, fields, part)


if __name__ == "__main__":
    command.run(main)
