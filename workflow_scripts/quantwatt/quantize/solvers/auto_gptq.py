"""GPTQ as auto-gptq 0.7.1 has it: solved in that library's own environment, read from files here.

With dynamic groups narrower than its blocks of 128 columns the library fits a group's grid to weights that lack the
corrections from the group's own block.
"""

import torch

from quantwatt.quantize import exchange

EXTERNAL = "auto-gptq"
read = exchange.read

BLOCK_SIZE = 128  # the library's default
DAMPING_TRIES = 4


def solve_layer(weight, inputs, weights, settings):
    """Run the library on one layer; in its environment only.

    Args:
        weight: [rows, columns] float32.
        inputs: [tokens, columns] float32.
        weights: the layer's integer format.
        settings: damping, act_order, static_groups.
    Returns:
        (values [rows, columns], scale, zero [rows, groups], g_idx [columns], damping used).
    Raises:
        torch.linalg.LinAlgError: the Hessian could not be factorized; the library has no remedy.
    """
    from auto_gptq.quantization.gptq import GPTQ

    if not torch.cuda.is_available():  # called by the library whatever the device
        torch.cuda.synchronize = lambda device=None: None
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    task = GPTQ(layer)
    task.quantizer.configure(weights["bits"], perchannel=True, sym=weights["symmetric"], mse=weights["clip_search"])
    task.add_batch(inputs, None)
    scale, zero, g_idx = task.fasterquant(
        blocksize=BLOCK_SIZE,
        percdamp=settings["damping"],
        group_size=weights["group_size"] or -1,
        actorder=settings["act_order"],
        static_groups=settings["static_groups"],
    )
    return layer.weight.data, scale, zero, g_idx, settings["damping"]
