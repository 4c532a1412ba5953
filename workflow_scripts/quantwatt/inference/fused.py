"""What goes before and after a product of integers on the CPU, and the unpacking of weights: one pass each.

They are C (fused.c), compiled once by the system's compiler into a cache folder, or PyTorch's functions, five to ten
passes for each, where there is no compiler or the tensors are on another device or float16. Not torch.compile: it takes
a process 4.3 CPU seconds more to compile one such pass again from a full cache, and 6 from an empty one, where the C
takes half a second once and nothing after it (torch 2.13, 2 AVX2 cores); a small model's job lasts a few seconds.
"""

import ctypes
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from quantwatt.formats.quantized_weight import QuantizedWeight, unpack

SOURCE = Path(__file__).with_suffix(".c")
PANEL = 16  # as in fused.c
# Without -ffast-math: NaN must come through, and codes be those of quantwatt.formats.activations.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
# Of fused.c's functions: pointer, int, int64_t, float.
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_int64, "f": ctypes.c_float}
ARGUMENTS = {
    "quantize": "pi" + "qqqqq" + "iiiiii" + "pppi",
    "rescale": "pi" + "qqq" + "ppippp" + "ipi",
    "unpack": "pi" + "qq" + "ppp" + "qqp" + "ipi",
    "multiply_packed": "pq" + "piqq" + "ppp" + "qqp" + "ppi",
    "multiply": "pi" + "qqq" + "iiiii" + "ff" + "ppppi",
}


def quantize(inputs, activation_format, static=None, halves=False, padding=(0, 0)):
    """Inputs as unsigned codes: value = (code + activation_format.lowest - zero) * scale.

    Args:
        inputs: [rows, columns], or images [rows, height, width, channels], whose codes are padded with that of zero.
        static: (scale [1], zero [1]) of a format that is not dynamic.
        halves: give code // 2 of all rows, and below it code % 2 of all rows.
        padding: above and below, left and right of an image.
    Returns:
        (codes uint8 [rows, or 2 * rows, ...], scale [rows], zero [rows], both float32).
    """
    images = inputs.contiguous() if inputs.dim() == 4 else inputs.contiguous()[:, None, None]
    (rows, height, width, channels), (top, side) = images.shape, padding
    shape = (rows * (2 if halves else 1), height + 2 * top, width + 2 * side, channels)
    lowest = activation_format.lowest
    if (library := _library_for(images, images.dtype)) is None:
        inside, scale, zero = activation_format.encode(images.flatten(1), static)
        scale = scale.expand(rows, 1)[:, 0]
        zero = torch.zeros_like(scale) if zero is None else zero.expand(rows, 1)[:, 0]
        codes = (zero - lowest).to(torch.uint8)[:, None, None, None].repeat(1, *shape[1:])
        codes[:, top : top + height, side : side + width] = (inside.short() - lowest).reshape(images.shape)
        codes = torch.cat([codes >> 1, codes & 1]) if halves else codes
    else:
        codes = torch.empty(shape, dtype=torch.uint8)
        scale, zero = (torch.empty(rows) for _ in range(2)) if static is None else (one.repeat(rows) for one in static)
        sizes = (rows, height, width * channels, top, side * channels)
        kind = (activation_format.dynamic, activation_format.granularity == "token", activation_format.symmetric)
        library.quantize(
            *(_address(images), images.dtype == torch.bfloat16, *sizes, *kind, lowest, activation_format.highest),
            *(halves, _address(codes), _address(scale), _address(zero), torch.get_num_threads()),
        )
    return codes.reshape(len(codes), *shape[4 - inputs.dim() + 1 :]), scale, zero


def rescale(sums, scale, zero, lowest, column_scale, column_sum, bias, dtype, halves=False):
    """The layer's outputs, of the sums of `quantize`'s codes times the weight's integers.

    Args:
        sums: [rows, or 2 * rows, ..., outputs] float32.
        scale, zero, lowest: [rows], [rows] and a number: the grid of the codes.
        column_scale, column_sum: [outputs] float32, scale and sum of the weight's integers.
        bias: [outputs] float32 or None.
    Returns:
        [rows, ..., outputs] of a dtype.
    """
    rows, sums = len(scale), sums.contiguous()
    if (library := _library_for(sums, dtype)) is None:
        sums = 2 * sums[:rows] + sums[rows:] if halves else sums
        scale, zero = (part.reshape(rows, *[1] * (sums.dim() - 1)) for part in (scale, zero))
        outputs = (sums - (zero - lowest) * column_sum) * (scale * column_scale)
        return (outputs if bias is None else outputs + bias).to(dtype)
    outputs = torch.empty(rows, *sums.shape[1:], dtype=dtype)
    positions = sums.shape[1:-1].numel()
    library.rescale(
        *(_address(sums), halves, rows * positions, sums.shape[-1], positions),
        *(_address(scale), _address(zero), lowest, _address(column_scale), _address(column_sum), _address(bias)),
        *(dtype == torch.bfloat16, _address(outputs), torch.get_num_threads()),
    )
    return outputs


def multiply(inputs, activation_format, static, panels, column_scale, bias):
    """A linear layer of integers in one pass, in C: quantize, multiply and rescale.

    Args:
        inputs: [rows, columns] float32 or bfloat16; static: as of `quantize`.
        panels: the weight's integers, of `panels_of`.
        column_scale, bias: [outputs] float32; bias may be None.
    Returns:
        [rows, outputs] of the inputs' type.
    """
    inputs = inputs.contiguous()
    (rows, columns), outputs = inputs.shape, len(column_scale)
    products = torch.empty(rows, outputs, dtype=inputs.dtype)
    kind = (activation_format.dynamic, activation_format.granularity == "token", activation_format.symmetric)
    grid = (1.0, 0.0) if static is None else (one.item() for one in static)
    library().multiply(
        *(_address(inputs), inputs.dtype == torch.bfloat16, rows, columns, outputs, *kind),
        *(activation_format.lowest, activation_format.highest, *grid, _address(panels), _address(column_scale)),
        *(_address(bias), _address(products), torch.get_num_threads()),
    )
    return products


def panels_of(integers):
    """A weight's integers [rows, columns] int8 as `multiply` reads them: [panels, pairs of columns, 16 rows, 2]."""
    rows, columns = integers.shape
    padded = torch.nn.functional.pad(integers, (0, columns % 2, 0, -rows % PANEL))
    return padded.reshape(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def dequantize(quantized, weight_format, columns, dtype, bits):
    """A weight [rows, columns] of a dtype.

    Args:
        quantized: QuantizedWeight whose codes are packed into `bits` each, [rows, bytes].
    """
    packed, scale, zero, index = quantized.codes, quantized.scale, quantized.zero, quantized.group_index
    if (library := _library_for(packed, dtype)) is None:
        quantized = QuantizedWeight(unpack(packed, bits, columns), scale, zero, group_index=index)
        return quantized.dequantize(weight_format).to(dtype)
    weight = torch.empty(len(packed), columns, dtype=dtype)
    values = weight_format.codebook
    zero = _zeros(quantized, weight_format)
    library.unpack(
        *(_address(packed), bits, len(packed), columns, _address(values), _address(scale), _address(zero)),
        *(scale.shape[1], weight_format.group_width(columns), _address(index)),
        *(dtype == torch.bfloat16, _address(weight), torch.get_num_threads()),
    )
    return weight


def multiply_packed(inputs, quantized, weight_format, bits, bias):
    """Outputs [tokens, rows] of few tokens, in C: no float weight is made. None where it cannot compute them.

    Args:
        inputs: [tokens, columns] float32 or bfloat16; bias: [rows] or None.
        quantized, bits: as of `dequantize`.
    """
    packed, scale, columns = quantized.codes, quantized.scale, inputs.shape[1]
    values = weight_format.codebook
    compiled = _library_for(inputs, inputs.dtype)
    if not hasattr(compiled, "multiply_packed") or quantized.group_index is not None:
        return None
    flat, (groups, group) = inputs.float().contiguous(), (scale.shape[1], weight_format.group_width(columns))
    zero = _zeros(quantized, weight_format)
    sums = torch.nn.functional.pad(flat, (0, groups * group - columns)).reshape(len(flat), groups, group).sum(dim=2)
    bias = None if bias is None else bias.float()
    outputs = torch.empty(len(flat), len(packed))
    compiled.multiply_packed(
        *(_address(flat), len(flat), _address(packed), bits, len(packed), columns, _address(values)),
        *(_address(scale), _address(zero), groups, group, _address(sums), _address(bias), _address(outputs)),
        torch.get_num_threads(),
    )
    return outputs.to(inputs.dtype)


def _zeros(quantized, weight_format):
    """Zero points, float32 in the shape of the scale; those of codebooks are 0."""
    if quantized.zero is not None:
        return quantized.zero.float()
    return torch.full_like(quantized.scale, weight_format.middle)


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


def _library_for(tensor, dtype):
    known = tensor.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return library() if known else None


@functools.cache
def library():
    """The compiled functions, or None where nothing compiles them; the log then says so."""
    processor = json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True)  # a home may be shared by several
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, processor]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantwatt"
    path = folder / f"fused-{key}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as made:  # several jobs may compile at once
                whole = Path(made) / path.name
                command = [os.environ.get("CC", "cc"), *FLAGS, str(SOURCE), "-o", str(whole), "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                whole.replace(path)
        compiled = ctypes.CDLL(path)
    except (OSError, subprocess.CalledProcessError) as error:
        own = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        print(f"fused.c is not compiled ({own}): PyTorch's functions take its place, more slowly.", file=sys.stderr)
        return None
    for name, arguments in ARGUMENTS.items():
        if hasattr(compiled, name):
            getattr(compiled, name).argtypes = [TYPES[letter] for letter in arguments]
    return compiled
