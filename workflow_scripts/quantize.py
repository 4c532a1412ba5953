"""Quantize a model's denoiser, or another component, with one method; measure the time and energy of that."""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.allocate import blocks
from quantwatt.artifacts import checkpoint_files, component_files, layer_variants, manifest
from quantwatt.artifacts.average_bits import average_bits
from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import methods
from quantwatt.jobs import command, gpus, machine
from quantwatt.measuring.meters import Metering

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "diffusers", "transformers", "bitsandbytes", "torchao", "optimum-quanto")


def component_bytes(model: Mapping[str, Any], dtype: str) -> dict[str, int]:
    """{name: bytes in a dtype, unquantized} of a pipeline's networks, the denoiser first; {} of a text model."""
    if not model.get("denoiser"):
        return {}
    sizes = {model["denoiser"]: model["denoiser_bytes"]}
    sizes |= {name: part["bytes"] for name, part in model["components"].items()}
    return {name: size * BYTES[dtype] // BYTES[model["settings"]["dtype"]] for name, size in sizes.items()}


def in_type(
    samples: "Mapping[str, torch.Tensor]", stored: "torch.dtype", dtype: "torch.dtype"
) -> "dict[str, torch.Tensor]":
    """Convert calibration samples of the stored dtype to another; timesteps and token numbers are unchanged."""
    return {name: tensor.to(dtype) if tensor.dtype == stored else tensor for name, tensor in samples.items()}


def layer_formats(allocation: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (layer, its formats) of an allocation, of each range of steps if it has a schedule."""
    ranges = [entry["layers"] for entry in allocation] if isinstance(allocation, list) else [allocation]
    return [item for layers in ranges for item in layers.items()]


def unsupported(allocation: Mapping[str, Any] | Sequence[Mapping[str, Any]], device: str) -> str | None:
    """Return why an allocation is unsupported, or a library's format in it on this device; else None."""
    if "unsupported" in allocation:
        return allocation["unsupported"]  # ty: ignore[invalid-argument-type]  (a mapping)
    if not allocation:  # the baseline, which needs no torch
        return None
    from quantwatt.formats.library import library_of

    different = {json.dumps(formats["weights"], sort_keys=True) for _, formats in layer_formats(allocation)}
    for weights in map(json.loads, sorted(different)):
        library = library_of(weights)
        if library and (reason := library.unsupported(device)):
            return reason
    return None


def check_agreement(
    allocation: Mapping[str, Any] | Sequence[Mapping[str, Any]], method: Mapping[str, Any], where: str | Path
) -> None:
    """Refuse an allocation with formats that the method does not have, as the checkpoint's manifest would be wrong.

    Args:
        allocation: as written by allocate.py; method: a completed entry; where: the allocation's file, for the message.
    Raises:
        DataError: a layer has a format that the method does not have.
    """
    entries = methods.with_formats(method)
    for side in ("weights", "activations"):
        known = [entry[side] for entry in entries if side in entry] + [None]
        if side == "weights":  # a layer that the blocks of its format do not divide has another
            known += [weights for first in known for weights in blocks.with_fallbacks(first)]
        of_layers = [(name, formats[side]) for name, formats in layer_formats(allocation)]
        if other := next(((name, formats) for name, formats in of_layers if formats not in known), None):
            raise DataError(
                f"{where}: layer {other[0]}: the method has no such {side} ({json.dumps(other[1])}); pass the file "
                "that allocate.py has written for this method."
            )


def over_ranges(
    layers: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, Mapping[str, Any]],
    schedule: Sequence[Mapping[str, Any]],
    dtype: str,
) -> dict[str, Any]:
    """Return the schedule of a checkpoint's manifest, with the average bits of each range, and the bits that it stores.

    Args:
        layers: of the model's manifest; reports: as `quantwatt.quantize.scheduled.quantize` returns.
        schedule: [{"steps"}] of the ranges.
    Returns:
        {"schedule", "stored_bits": per weight, "weight_bits" and "activation_bits": None, as they are known of a
        drawing alone, whose steps the ranges share}.
    """
    ranges = []
    for index, entry in enumerate(schedule):
        computing = {name: layer_variants.computing(report, index) for name, report in reports.items()}
        quantized = {name: report for name, report in computing.items() if report is not None}
        ranges.append({"steps": entry["steps"], **average_bits(layers, quantized, dtype)})
    total = sum(layer["in_features"] * layer["out_features"] for layer in layers.values())
    stored = 8.0 * BYTES[dtype]
    for report in reports.values():
        kept = 0 if layer_variants.keeps_weight(report) else -8 * BYTES[dtype]
        bits = sum(v["weight_bits"] for v in layer_variants.variants(report) if "codes" not in v.get("shares", {}))
        stored += report["in_features"] * report["out_features"] / total * (bits + kept)
    return {"schedule": ranges, "stored_bits": round(stored, 4), "weight_bits": None, "activation_bits": None}


def write_without_weights(
    path: str | Path, details: Mapping[str, Any], model: Mapping[str, Any], status: str, reason: str | None
) -> None:
    """Write the manifest of the baseline, which is the float model, or of a method that is unsupported here."""
    dtype = details["model_settings"]["dtype"]
    size = model["denoiser_bytes"] * BYTES[dtype] // BYTES[model["settings"]["dtype"]] if status == "ok" else None
    manifest.write_json(
        path,
        {**details, "status": status, "reason": reason, **average_bits(model["layers"], {}, dtype), "size_bytes": size,
         "files": {}, "layers": {}, "quantize": None, "calibration": None, "provenance": provenance()},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--component", help="name of the component to quantize (default: the denoiser)")
    parser.add_argument("--allocation", required=True, help="JSON file from allocate.py")
    parser.add_argument("--calibration", help="the calibration's manifest.json, for methods that need calibration")
    parser.add_argument("--solved", help="manifest.json from solve_layers.py, for an external solver")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument(
        "--metering", type=Metering.from_json, default=Metering(), help="meter and its settings, as JSON"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", required=True, help="manifest.json to write; the weights are written next to it")
    args = parser.parse_args(argv)
    model, allocation = manifest.read_json(args.model), manifest.read_json(args.allocation)
    layers = component_files.described(model, args.component)["layers"]
    settings = methods.computing_in(model["settings"], args.method)
    details = {
        "status": "ok",
        "reason": None,
        "model": model["model"],
        "method": args.method_name,
        "model_settings": settings,
        "location": model["location"],
        "component": args.component,
        "denoiser": model.get("denoiser"),
        "component_bytes": component_bytes(model, settings["dtype"]),
        "solver": args.method["solver"] and args.method["solver"]["name"],
        "settings": args.method,
        **methods.kept_adapters(model["settings"], args.method),
    }
    external: dict[str, Any] = manifest.read_json(args.solved) if args.solved else {"status": "ok", "reason": None}
    machine.require(args.device)  # else a missing GPU would be recorded as a missing kernel
    if "unsupported" not in allocation:
        check_agreement(allocation, args.method, args.allocation)
    missing = unsupported(allocation, args.device)
    if missing:
        external = {"status": "unsupported", "reason": missing}
    if not allocation or external["status"] != "ok":
        write_without_weights(args.output, details, model, external["status"], external["reason"])
        return
    gpus.claim(args.device)

    import torch

    from quantwatt.measuring import meters
    from quantwatt.models import components, splits
    from quantwatt.models.families import load_family
    from quantwatt.quantize import calibration, scheduled, sequential

    torch.set_num_threads(args.threads)
    family = load_family(settings["family"])
    location = manifest.PROJECT / model["location"]
    manifest.verify_files(args.model, model["files"], location)
    network: Any = components.load(family, settings, location, args.component) if args.component else family

    def load():
        denoiser = network.load_network(settings, location)
        splits.split(denoiser, splits.of_layers(layers, dict(layer_formats(allocation))))
        return denoiser

    samples, calibrated = calibration.load(args.calibration) if args.calibration else (None, None)
    samples = samples and in_type(samples, *(getattr(torch, entry["dtype"]) for entry in (model["settings"], settings)))
    batch = calibrated["calibration"]["batch_size"] if calibrated else None
    origins = [row.get("prompt", row.get("item")) for row in calibrated["samples"]] if calibrated else None
    solved = args.solved and Path(args.solved).parent
    if isinstance(allocation, list):
        recorded = None
        if samples and calibrated:
            of_set = calibrated["calibration"]
            recorded = scheduled.CalibrationSet(samples, calibrated["samples"], of_set["batch_size"], of_set["steps"])
        run = functools.partial(scheduled.quantize, load, network, allocation, args.method, recorded, args.device)
    else:
        denoiser = load()
        run = functools.partial(
            sequential.quantize,
            denoiser,
            network,
            allocation,
            args.method,
            samples,
            batch,
            args.device,
            solved,
            origins,
        )
    try:
        (states, reports), cost, trace = meters.metered(run, args.metering, args.device)
    except Unsupported as error:
        write_without_weights(args.output, details, model, "unsupported", str(error))
        return
    for report in (own for layer in reports.values() for own in layer.get("variants", [layer])):
        spans = report.pop("spans")
        report["seconds"] = sum(share * (stop - start) for start, stop, share in spans)
        joules = [trace.energy_between(start, stop) for start, stop, _ in spans]
        known = trace.energy_j is not None
        report["energy_j"] = sum(share * j for (_, _, share), j in zip(spans, joules, strict=True)) if known else None
    calibrated = calibrated and calibrated["cost"]
    if args.solved:
        # The library's environment has no meter, and the cost measured here is only that of reading its files.
        for name, report in reports.items():
            report |= {**external["layers"][name], "energy_j": None}
        seconds = external["export_s"] + sum(layer["seconds"] for layer in external["layers"].values())
        reason = f"solved in the environment of {args.method['solver']['name']}, without a meter"
        cost |= {"seconds": seconds, "energy_j": None, "reason": reason}
        calibrated = external["calibration"]
    if isinstance(allocation, list):
        bits, denoiser = over_ranges(layers, reports, allocation, settings["dtype"]), load()
    else:
        bits = average_bits(layers, reports, settings["dtype"])
    checkpoint_files.save(
        Path(args.output).parent,
        denoiser,
        states,
        reports,
        {**details, **bits, "quantize": cost,
         "calibration": calibrated,
         "provenance": provenance(PACKAGES)},
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
