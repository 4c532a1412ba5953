"""Measure the image error of each choice of a mixed method's integer programs, with layers rounded to nearest.

Programs are evaluated in order: the choices of a program are combined with the best choices of earlier programs, and
with 16 bit for the side (weights or activations) that a later program decides.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantwatt.allocate.allocation import taken_apart
from quantwatt.allocate.allocations import mixed
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.data import prompts
from quantwatt.jobs import command, gpus
from quantwatt.jobs.progress import progress

if TYPE_CHECKING:
    from quantwatt.allocate.sensitivity import Probe


def try_choices(
    probe: "Probe", method: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table of trials; a program with a single choice needs no trial."""
    chosen = []
    for index in range(len(method["allocation"]["programs"])):
        options, tried = [choice for choice in choices if choice["program"] == index], {}
        for choice in (
            progress(options, description=f"trying program {index}", unit="choice") if len(options) > 1 else ()
        ):
            for span, layers in zip(probe.spans, choice["ranges"], strict=True):
                probe.replace_all(mixed.formats_of(method, [*(ranges[span or 0] for ranges in chosen), layers]), span)
            scores = probe.scores(("psnr",))
            tried[index, choice["number"]] = scores["image_error"]
            yield {
                "program": index,
                "number": choice["number"],
                **{key: scores[key] for key in ("image_error", "psnr")},
            }
        chosen.append(mixed.best(options, tried)["ranges"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--sensitivity", required=True, type=json.loads, help="the sensitivity's entry, as JSON")
    parser.add_argument("--candidates", required=True, help="JSON file from candidates.py")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, help=f"CSV file: {', '.join(sensitivity_table.TRIALS)}")
    args = parser.parse_args(argv)
    entry, model, choices = args.sensitivity, manifest.read_json(args.model), manifest.read_json(args.candidates)
    if "unsupported" in choices:
        csv_files.write(args.output, sensitivity_table.TRIALS, [])
        return
    gpus.claim(args.device)

    import torch

    from quantwatt.allocate.sensitivity import Probe
    from quantwatt.models.families import load_family

    torch.set_num_threads(args.threads)
    manifest.verify_files(args.model, model["files"], manifest.PROJECT / model["location"])
    descriptions = taken_apart(model["layers"], [transform["name"] for transform in entry["transforms"]])
    layers = {name: descriptions[name] for name in choices[0]["ranges"][0]}
    family: Any = load_family(model["settings"]["family"])  # of images: of texts no sensitivity is planned
    probe = Probe(family, model, entry, layers, args.device)
    probe.draw_float(prompts.read_and_say(probe.sampling.prompts)[: probe.sampling.images])
    csv_files.write(args.output, sensitivity_table.TRIALS, try_choices(probe, args.method, choices))


if __name__ == "__main__":
    command.run(main)
