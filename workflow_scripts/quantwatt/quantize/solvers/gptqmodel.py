"""GPTQ as gptqmodel 7.7.0 has it: solved in that library's own environment, read from files here.

Dynamic groups narrower than its blocks of 128 columns are fitted as auto-gptq fits them.
"""

import torch

from quantwatt.quantize import exchange

EXTERNAL = "gptqmodel"
read = exchange.read

BLOCK_SIZE = 128  # the library's default
DAMPING_TRIES = 1  # the library raises it by itself
CLIP_NORM = 2.4  # the power of the error that the clip search minimises


def solve_layer(weight, inputs, weights, settings):
    """Run the library on one layer; in its environment only.

    Args:
        weight: [rows, columns] float32.
        inputs: [tokens, columns] float32.
        weights: the layer's integer format.
        settings: damping, act_order, static_groups.
    Returns:
        (values [rows, columns], scale, zero [rows, groups], g_idx [columns], damping used: the library raises it where
        the Hessian cannot be factorized).
    Raises:
        torch.linalg.LinAlgError: not even that helped.
    """
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    config = QuantizeConfig(
        bits=weights["bits"],
        group_size=weights["group_size"] or -1,
        sym=weights["symmetric"],
        mse=CLIP_NORM if weights["clip_search"] else 0.0,
        desc_act=settings["act_order"],
        act_group_aware=False,  # an ordering of its own
        static_groups=settings["static_groups"],
        damp_percent=settings["damping"],
        fallback=None,
        offload_to_disk=False,
    )
    task = GPTQ(layer, config)
    task.quantizer.configure(perchannel=True)
    task.add_batch(inputs, None)
    values, scale, zero, g_idx, _, _, damping, _ = task.quantize(blocksize=BLOCK_SIZE)
    if damping == 1.0:  # the library has given up and rounded to nearest
        raise torch.linalg.LinAlgError("gptqmodel found no damping that would do")
    return values, scale, zero, g_idx, damping
