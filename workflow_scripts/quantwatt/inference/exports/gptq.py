"""GPTQ's packed integers, as auto-gptq, gptqmodel, transformers and vLLM read them (version 1 of the format).

Per layer: qweight int32 [columns * bits / 32, rows] and qzeros int32 [groups, rows * bits / 32], packed from the lowest
bits of a word; scales float16 [groups, rows]; g_idx int32 [columns], each column's group. A weight is
(code - (zero + 1)) * scale: the stored zero point is one less than the zero point, which therefore cannot be 0. Scales
are rounded to float16.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantwatt.artifacts import manifest
from quantwatt.inference.exports import NotExpressible, safetensors, weight_of

save = safetensors
PARTS = {"codes", "scale", "zero", "group_index"}
CONV1D = True
BITS = (2, 3, 4, 8)
WORD = 32
WORST_SCALE = 2**-8  # largest relative rounding error of a scale; float16 has 2**-11, except for subnormal numbers


def tensors(
    name: str, layer: Mapping[str, Any], state: Mapping[str, torch.Tensor], dtype: torch.dtype, first_zero: int = 1
) -> dict[str, torch.Tensor]:
    """See quantwatt.inference.exports. `dtype` does not matter: the format has float16 scales.

    Args:
        first_zero: the zero point that is stored as 0.
    """
    rows, columns = layer["out_features"], layer["in_features"]
    if layer["activations"]:
        raise NotExpressible("its activations are quantized, and the format stores only quantized weights")
    if rows % WORD or columns % WORD:
        raise NotExpressible(f"its shape {rows} by {columns} is not a multiple of {WORD}")
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


def configuration(details: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """Return the content of quantize_config.json, which transformers and vLLM also look for in config.json."""
    kinds = {_kind(layer["weights"]) for layer in details["layers"].values()}
    if len(kinds) > 1:
        raise NotExpressible(
            f"its layers' grids differ ({', '.join(sorted(map(str, kinds)))}), and the format has one grid for all"
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


def file_name(denoiser: torch.nn.Module) -> str:
    """Return the file name that all readers of the format try."""
    return "model.safetensors"


def finish(
    folder: Path, tensors: Mapping[str, torch.Tensor], configuration: Mapping[str, Any]
) -> tuple[Mapping[str, torch.Tensor], dict[str, str]]:
    """Write quantize_config.json."""
    manifest.write_json(folder / "quantize_config.json", configuration)
    return tensors, {}


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes [length, width] below 2**bits into int32 [length * bits / 32, width]: one bit stream per column.

    The lowest bit comes first; a 3-bit code may be split over two words.
    """
    array = np.ascontiguousarray(values.numpy())
    stream = (array[:, None, :] >> np.arange(bits)[None, :, None] & 1).astype(np.uint8)
    packed = np.packbits(stream.reshape(-1, array.shape[1]), axis=0, bitorder="little")  # [bytes, width]
    words = packed.reshape(-1, 4, array.shape[1]).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(words).view("<i4")[..., 0].astype(np.int32))


def _left_out(quantized, skipped):
    """Return the entries that list linear layers left in 16 bits inside transformer blocks; {} if there are none.

    Without these entries, readers assume that all linear layers of a block are quantized. transformers reads
    modules_in_block_to_quantize; gptqmodel and vLLM read dynamic. Layers outside the blocks need no entry.
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
    """Return the part of a layer's name before the first number (the list of blocks), or the whole name."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


def _kind(settings):
    """(bits, group size or -1, symmetric) of a layer's format."""
    if settings["format"] != "integer" or settings["bits"] not in BITS:
        raise NotExpressible(f"GPTQ has integer grids of 2, 3, 4 or 8 bits, not {settings['format']}")
    group = settings["group_size"] if settings["granularity"] == "group" else -1
    return settings["bits"], group, settings["symmetric"]


def _above_zero(codes, zero, index, highest):
    """Remove zero points that are 0: add one to such a zero point and to its group's codes; the values stay equal."""
    raised = (zero == 0).int()  # [rows, groups]
    codes = codes + raised[:, index]
    if (codes > highest).any():
        raise NotExpressible(f"a group has the zero point 0 and the code {highest}; gptq-v2 can express it")
    return codes, zero + raised


def _float16(scale):
    half = scale.half()
    worst = (half.float() / scale.float() - 1).abs().max().item()
    if not worst <= WORST_SCALE:
        raise NotExpressible(f"rounding a scale to float16 changes it by {worst:.0%}")
    return half
