"""Run the W4A8 Triton kernel on many layers and inputs, and write {case: error} to the JSON file that is named.

test_cuda_kernels.py starts it with TRITON_INTERPRET=1.
"""

import json
import sys
from pathlib import Path

import kernel_cases as cases
import torch

from quantwatt.inference.kernels import triton_w4a8

SHAPES = {"even": (64, 256), "odd": (37, 129), "narrow": (5, 64), "wide": (130, 448)}
GRIDS = {
    "channel": cases.integer(4, False),
    "symmetric channel": cases.integer(4, True),
    "group 64": cases.integer(4, False, 64),
    "group 128": cases.integer(4, True, 128, narrow=False),
    "group 192": cases.integer(3, False, 192),
    "two bits": cases.integer(2, True, 128),
}
ACTIVATIONS = {"token": cases.TOKEN, "asymmetric": cases.TOKEN_ASYMMETRIC, "static": cases.STATIC}


def main(path):
    errors = {}
    for grid, weights in GRIDS.items():
        for name, shape in SHAPES.items():
            kind = list(ACTIVATIONS)[len(errors) % 3]
            layers = cases.pair(triton_w4a8, weights, ACTIVATIONS[kind], shape, act_order=weights["group_size"] == 64)
            for inputs in cases.INPUTS:
                errors[f"float32 {grid}, {name}, {kind}, {inputs}"] = cases.error(layers, inputs)
        for dtype in (torch.bfloat16, torch.float16):
            layers = cases.pair(triton_w4a8, weights, cases.TOKEN, SHAPES["odd"], dtype, bias=False)
            name = str(dtype).removeprefix("torch.")
            errors[f"{name} {grid}"] = cases.error(layers, "many", dtype)
    own, reference = cases.pair(triton_w4a8, GRIDS["group 64"], cases.TOKEN_ASYMMETRIC, SHAPES["odd"])
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
    errors["float32 inside a compiled module"] = cases.error((compiled, reference), "many")
    Path(path).write_text(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1])
