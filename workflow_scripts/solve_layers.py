"""Solve exported layers with a library, in the library's environment."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command

if TYPE_CHECKING:
    import torch

PACKAGES = {"auto-gptq": "auto_gptq", "gptqmodel": "gptqmodel"}


def solve(solver: Any, weight: "torch.Tensor", inputs: "torch.Tensor", weights: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the solver's `solve_layer`; if it fails, raise the damping tenfold, and finally round to nearest.

    Returns:
        (values, scale, zero, g_idx, damping used or None, fallback: "damping" if it was raised, "rtn" or None).
    """
    import torch

    from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest

    for attempt in range(solver.DAMPING_TRIES):
        raised = dataclasses.replace(solver, damping=solver.damping * 10**attempt)
        try:
            *solution, damping = raised.solve_layer(weight, inputs, weights)
        except torch.linalg.LinAlgError:
            continue
        return *solution, damping, None if damping == solver.damping else "damping"
    weight_format = load_format(weights)
    nearest = quantize_to_nearest(weight, weight_format)
    zero = torch.full_like(nearest.scale, weight_format.middle) if nearest.zero is None else nearest.zero.float()
    group = torch.arange(weight.shape[1]) // weight_format.group_width(weight.shape[1])
    return nearest.dequantize(weight_format), nearest.scale, zero, group, None, "rtn"


def errors(
    weight: "torch.Tensor", inputs: "torch.Tensor", values: "torch.Tensor", weights: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the relative output errors of rounding to nearest and of the solution, as quantize.py reports them."""
    from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest

    weight_format, size = load_format(weights), (inputs @ weight.T).norm().clamp(min=1e-30)
    nearest = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    before, after = (((inputs @ (weight - solved).T).norm() / size).item() for solved in (nearest, values))
    return {
        "error_before": manifest.finite(before),
        "relative_error": manifest.finite(after),
        "error_of": "outputs on float inputs",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, choices=sorted(PACKAGES))
    parser.add_argument("--exchange", required=True, help="manifest.json from export_layers.py")
    parser.add_argument("--allocation", required=True, help="JSON file from allocate.py")
    parser.add_argument("--solver", required=True, type=json.loads, help="the method's solver, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", required=True, help="manifest.json to write; the layers' files are written next to it"
    )
    args = parser.parse_args(argv)
    package, allocation = PACKAGES[args.backend], manifest.read_json(args.allocation)
    reason = allocation.get("unsupported")
    if reason is None and importlib.util.find_spec(package) is None:
        reason = f"{args.backend} is not installed here: run with --sdm conda, or make backends"
    if reason:
        manifest.write_json(args.output, {"status": "unsupported", "reason": reason, "layers": {}, "files": {}})
        return

    import torch
    from safetensors.torch import load_file

    from quantwatt.jobs.progress import progress
    from quantwatt.quantize import exchange, hold_out
    from quantwatt.quantize.solvers import load_solver

    torch.set_num_threads(args.threads)
    solver = load_solver({**args.solver, "name": args.backend})
    exported, folder = manifest.read_json(args.exchange), Path(args.output).parent
    manifest.verify_files(args.exchange, exported["files"])
    layers = {}
    for name, formats in progress(allocation.items(), description=f"solving by {args.backend}", unit="layer"):
        weights = {"clip_search": False, **formats["weights"]}
        if name not in exported["layers"]:
            raise DataError(f"{args.exchange}: no layer '{name}', or the calibration data never reach it.")
        files = exported["layers"][name]
        weight, inputs = (load_file(Path(args.exchange).parent / files[part])[part] for part in ("weight", "inputs"))
        start = time.perf_counter()
        *solution, damping, fallback = solve(solver, weight, inputs, weights)
        layers[name] = {"seconds": time.perf_counter() - start, "damping": damping, "fallback": fallback}
        layers[name] |= errors(weight, inputs, solution[0], weights)
        layers[name] |= {key: exported["layers"][name][key] for key in ("tokens", "in_features")}
        exchange.write_solved(folder / f"{name}.safetensors", *solution, weights["symmetric"], weights["bits"])
    if warning := hold_out.few_tokens(layers):
        print(f"warning: {warning}", file=sys.stderr)
    files = manifest.describe_files(folder, [f"{name}.safetensors" for name in layers])
    manifest.write_json(
        args.output,
        {"status": "ok", "reason": None, "backend": args.backend, "layers": layers, "files": files,
         "export_s": exported["seconds"], "calibration": exported["calibration"],
         "provenance": provenance(("torch", "transformers", args.backend))},
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
