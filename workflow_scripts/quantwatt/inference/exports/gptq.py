"""GPTQ's packed integers, as auto-gptq, gptqmodel, transformers and vLLM read them (version 1 of the form).

Per layer: qweight int32 [columns * bits / 32, rows] and qzeros int32 [groups, rows * bits / 32], the lowest bits of a
word first; scales float16 [groups, rows]; g_idx int32 [columns], each column's group. A weight is
(code - (zero + 1)) * scale: zero points are stored less one, so none can be 0. Scales are rounded to float16.
"""

import re

import numpy as np
import torch

from quantwatt.artifacts import manifest
from quantwatt.inference.exports import NotExpressible, weight_of

PARTS = {"codes", "scale", "zero", "group_index"}
CONV1D = True
BITS = (2, 3, 4, 8)
WORD = 32
WORST_SCALE = 2**-8  # relative rounding error of a scale; float16 is 2**-11 until its smallest numbers


def tensors(name, layer, state, dtype, first_zero=1):
    """See quantwatt.inference.exports. `dtype` does not matter: the form has float16 scales.

    Args:
        first_zero: the zero point that is stored as 0.
    """
    rows, columns = layer["out_features"], layer["in_features"]
    if layer["activations"]:
        raise NotExpressible("its activations are quantized, and the form holds weights alone")
    if rows % WORD or columns % WORD:
        raise NotExpressible(f"its shape {rows} by {columns} is no multiple of {WORD}")
    weight_format, weight = weight_of(layer, state)
    bits, width = weight_format.bits, weight_format.group_width(columns)
    if weight.zero is not None and weight.zero.dtype.is_floating_point:
        raise NotExpressible("its zero points are not integers")
    if columns % width:
        raise NotExpressible(f"groups of {width} do not divide its {columns} inputs")
    index = torch.arange(columns) // width if weight.group_index is None else weight.group_index.long()
    zero = torch.full_like(weight.scale, 2 ** (bits - 1)) if weight.zero is None else weight.zero
    codes, zero = weight.codes.int(), zero.int()  # [rows, columns], [rows, groups]
    if first_zero:
        codes, zero = _above_zero(codes, zero, index, 2**bits - 1)
    return {
        f"{name}.qweight": pack(codes.T, bits),
        f"{name}.qzeros": pack(zero - first_zero, bits).T,
        f"{name}.scales": _float16(weight.scale).T,
        f"{name}.g_idx": index.int(),
    }


def configuration(details, skipped):
    """quantize_config.json's content, which transformers and vLLM also look for in config.json."""
    kinds = {_kind(layer["weights"]) for layer in details["layers"].values()}
    if len(kinds) > 1:
        raise NotExpressible(
            f"its layers' grids differ ({', '.join(sorted(map(str, kinds)))}), and the form has one for all"
        )
    bits, group, symmetric = kinds.pop()
    solver = details["settings"]["solver"]
    ordered = any("group_index" in layer["parts"] for layer in details["layers"].values())
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": ordered,
        "static_groups": bool(solver.get("static_groups", False)),
        **({"damp_percent": solver["damping"]} if "damping" in solver else {}),
        "true_sequential": True,
        "lm_head": False,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        **_left_out(details["layers"], skipped),
    }


def file_name(denoiser):
    """The one that all readers of the form try."""
    return "model.safetensors"


def finish(folder, tensors, configuration):
    """Writes quantize_config.json."""
    manifest.write_json(folder / "quantize_config.json", configuration)
    return tensors, {}


def pack(values, bits):
    """Codes [length, width] below 2**bits as int32 [length * bits / 32, width]: one stream of bits down each column.

    The lowest bit comes first; a code of 3 bits may lie in two words.
    """
    values = np.ascontiguousarray(values.numpy())
    stream = (values[:, None, :] >> np.arange(bits)[None, :, None] & 1).astype(np.uint8)
    packed = np.packbits(stream.reshape(-1, values.shape[1]), axis=0, bitorder="little")  # [bytes, width]
    words = packed.reshape(-1, 4, values.shape[1]).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(words).view("<i4")[..., 0].astype(np.int32))


def _left_out(quantized, skipped):
    """What tells readers of linear layers that stay 16-bit in a block: they take all of a block's for quantized.

    transformers reads the first entry, gptqmodel and vLLM the second. Outside the blocks nothing is to be said.
    """
    blocks = {_block_list(name) for name in quantized}
    inside = [name for name in skipped if _block_list(name) in blocks]
    if not inside:
        return {}
    return {
        "modules_in_block_to_quantize": [list(quantized)],
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in inside},
    }


def _block_list(name):
    """What stands before the first number in a layer's name; the whole name of a layer in no block."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


def _kind(settings):
    """(bits, group size or -1, symmetric) of a layer's format."""
    if settings["format"] != "integer" or settings["bits"] not in BITS:
        raise NotExpressible(f"it has integer grids of 2, 3, 4 or 8 bits, not {settings['format']}")
    group = settings["group_size"] if settings["granularity"] == "group" else -1
    return settings["bits"], group, settings["symmetric"]


def _above_zero(codes, zero, index, highest):
    """The same values with no zero point 0: where one is, it and its group's codes move up by one."""
    raised = (zero == 0).int()  # [rows, groups]
    codes = codes + raised[:, index]
    if (codes > highest).any():
        raise NotExpressible(f"a group has the zero point 0 and the code {highest}; gptq-v2 has a place for it")
    return codes, zero + raised


def _float16(scale):
    half = scale.half()
    worst = (half.float() / scale.float() - 1).abs().max().item()
    if not worst <= WORST_SCALE:
        raise NotExpressible(f"float16 holds one of its scales only to {worst:.0%}")
    return half
