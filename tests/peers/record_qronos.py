"""Record what brevitas's Qronos (graph/qronos.py) makes of a layer, in an environment with brevitas (README.md).

The grid is fixed before anything is solved: per output channel, symmetric and narrow, scale max|w| / (2**(bits-1) - 1),
integers from -(2**(bits-1) - 1) to its opposite. It must be a parameter (`parameter_from_stats`): brevitas's default,
`stats`, takes the scale anew from the weights that the solver is changing, and its GPTQ then silently does nothing.

All in float64: in float32 brevitas rounds a value at the border of two integers elsewhere in one row of 48, in two of
these settings, and all later columns of that row follow.

brevitas accumulates H = mean x̃ x̃ᵀ and G = mean x x̃ᵀ (the transpose of methods' X̃ᵀX), without GPTQ's factor 2, which
cancels: damping is alpha times the largest eigenvalue of H by 30 power iterations.
"""

import json
from importlib import metadata
from pathlib import Path

import brevitas.nn
import torch
from brevitas.graph.gpxq import LayerHandler
from brevitas.graph.qronos import Qronos
from brevitas.quant import Int8WeightPerChannelFloat
from brevitas.utils.torch_utils import StopFwdException
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SETTINGS = [
    {"bits": bits, "act_order": act_order, "alpha": alpha}
    for bits, act_order, alpha in ((3, True, 1e-6), (4, False, 1e-6), (4, True, 1e-6), (4, True, 1e-3))
]


def collect(task, layer, inputs):
    """Give brevitas a batch, as its forward hook would; it ends the pass by an exception."""
    try:
        task.update_batch(layer, (inputs,), LayerHandler())
    except StopFwdException:
        return


def solve(weight, reference, inputs, chosen):
    """(codes [rows, columns] int8, scale [rows, 1], codes rounded to nearest)."""
    rows, columns = weight.shape
    layer = brevitas.nn.QuantLinear(
        columns,
        rows,
        bias=False,
        weight_quant=Int8WeightPerChannelFloat,
        weight_bit_width=chosen["bits"],
        weight_scaling_impl_type="parameter_from_stats",
    )
    layer.weight.data = weight.clone()
    layer.eval()
    layer(inputs)  # fixes the scale
    nearest = layer.quant_weight().int()
    task = Qronos(layer, "layer", chosen["act_order"], len_parallel_layers=1, create_weight_orig=True,
                  alpha=chosen["alpha"], dtype=torch.float64)  # fmt: skip
    collect(task, layer, inputs)  # first the quantized inputs, then the float ones of the same batch
    layer.weight_quant.disable_quant = True
    collect(task, layer, reference)
    layer.weight_quant.disable_quant = False
    task.single_layer_update()
    solved = layer.quant_weight()
    return solved.int(), solved.scale, nearest


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    layers = load_file(HERE / "layers.safetensors")
    weight, reference, inputs = (layers[f"qronos.{name}"].double() for name in ("weight", "reference", "inputs"))
    recorded = {}
    for index, chosen in enumerate(SETTINGS):
        codes, scale, nearest = solve(weight, reference, inputs, chosen)
        errors = [(reference @ weight.T - inputs @ (c * scale).T).norm().item() for c in (nearest, codes)]
        print(chosen, f"changed {(codes != nearest).float().mean():.3f}, error of rtn and Qronos {errors}")
        assert errors[1] < 0.9 * errors[0], "brevitas has not solved anything"
        recorded |= {f"{index}.codes": codes.to(torch.int8).contiguous(), f"{index}.scale": scale.float().contiguous()}
    versions = {name: metadata.version(name) for name in ("brevitas", "torch")}
    metadata_of_file = {"settings": json.dumps(SETTINGS), "versions": json.dumps(versions)}
    save_file(recorded, HERE / "brevitas_qronos.safetensors", metadata_of_file)


if __name__ == "__main__":
    main()
