"""Quantize inputs, rescale integer products and dequantize weights on the CPU, in one pass each.

The functions are in C (fused.c), which the system's compiler compiles once into a cache folder. Without a compiler, for
float16, or on another device, PyTorch's functions are used, with five to ten passes each. torch.compile is not used: it
costs each process 4.3 CPU seconds per function with a full cache and 6 with an empty one. Compiling the C takes half a
second, once (torch 2.13, 2 AVX2 cores). A small model's job lasts only a few seconds.
"""

import ctypes
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from quantwatt.formats.activations import ActivationFormat, StaticGrid
from quantwatt.formats.quantized_weight import QuantizedWeight, unpack
from quantwatt.formats.weight_format import WeightFormat

SOURCE = Path(__file__).with_suffix(".c")
PANEL = 16  # as in fused.c
# Without -ffast-math: NaN must be kept, and the codes must equal those of quantwatt.formats.activations.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
# Argument types of fused.c's functions: pointer, int, int64_t, float.
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_int64, "f": ctypes.c_float}
ARGUMENTS = {
    "quantize": "pi" + "qqqqq" + "iiiiii" + "pppi",
    "rescale": "pi" + "qqq" + "ppippp" + "ipi",
    "unpack": "pi" + "qq" + "ppp" + "qqp" + "ipi",
    "multiply_packed": "pq" + "piqq" + "ppp" + "qqp" + "ppi",
    "multiply": "pi" + "qqq" + "iiiii" + "ff" + "ppppi",
}


def quantize(
    inputs: torch.Tensor,
    activation_format: ActivationFormat,
    static: StaticGrid | None = None,
    halves: bool = False,
    padding: tuple[int, int] = (0, 0),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize inputs to unsigned codes: value = (code + activation_format.lowest - zero) * scale.

    Args:
        inputs: [rows, columns], or images [rows, height, width, channels], which are padded with the code of zero.
        static: (scale [1], zero [1]) of a format that is not dynamic.
        halves: return code // 2 of all rows, followed by code % 2 of all rows.
        padding: (above and below, left and right) of an image.
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
        scale, zero = (torch.empty(rows) for _ in range(2)) if static is None else (s.repeat(rows) for s in static)
        sizes = (rows, height, width * channels, top, side * channels)
        kind = (activation_format.dynamic, activation_format.granularity == "token", activation_format.symmetric)
        library.quantize(
            *(_address(images), images.dtype == torch.bfloat16, *sizes, *kind, lowest, activation_format.highest),
            *(halves, _address(codes), _address(scale), _address(zero), torch.get_num_threads()),
        )
    return codes.reshape(len(codes), *shape[4 - inputs.dim() + 1 :]), scale, zero


def rescale(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    lowest: int,
    column_scale: torch.Tensor,
    column_sum: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    halves: bool = False,
) -> torch.Tensor:
    """Compute a layer's outputs from the product of `quantize`'s codes and the weight's integers.

    Args:
        sums: [rows, or 2 * rows where `halves`, ..., outputs] float32, the product.
        scale, zero, lowest: [rows], [rows] and a number: the grid of the codes.
        column_scale, column_sum: [outputs] float32, scale and sum of the weight's integers.
        bias: [outputs] float32 or None.
        dtype: of the outputs.
    Returns:
        [rows, ..., outputs].
    """
    rows, sums = len(scale), sums.contiguous()
    if (library := _library_for(sums, dtype)) is None:
        sums = 2 * sums[:rows] + sums[rows:] if halves else sums
        scale, zero = (part.reshape(rows, *[1] * (sums.dim() - 1)) for part in (scale, zero))
        outputs = (sums - (zero - lowest) * column_sum) * (scale * column_scale)
        return (outputs if bias is None else outputs + bias).to(dtype)
    outputs = torch.empty(rows, *sums.shape[1:], dtype=dtype)
    positions = math.prod(sums.shape[1:-1])
    library.rescale(
        *(_address(sums), halves, rows * positions, sums.shape[-1], positions),
        *(_address(scale), _address(zero), lowest, _address(column_scale), _address(column_sum), _address(bias)),
        *(dtype == torch.bfloat16, _address(outputs), torch.get_num_threads()),
    )
    return outputs


def multiply(
    inputs: torch.Tensor,
    activation_format: ActivationFormat,
    static: StaticGrid | None,
    panels: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute an integer linear layer in one pass, in C: quantize, multiply and rescale.

    Args:
        inputs: [rows, columns] float32 or bfloat16; static: as for `quantize`.
        panels: the weight's integers, laid out by `panels_of`.
        column_scale, bias: [outputs] float32; bias may be None.
    Returns:
        [rows, outputs] of the inputs' type.
    """
    inputs = inputs.contiguous()
    (rows, columns), outputs = inputs.shape, len(column_scale)
    products = torch.empty(rows, outputs, dtype=inputs.dtype)
    kind = (activation_format.dynamic, activation_format.granularity == "token", activation_format.symmetric)
    grid = (1.0, 0.0) if static is None else (s.item() for s in static)
    library().multiply(  # ty: ignore[missing-union-attribute]  (the kernel accepts no layer without it)
        *(_address(inputs), inputs.dtype == torch.bfloat16, rows, columns, outputs, *kind),
        *(activation_format.lowest, activation_format.highest, *grid, _address(panels), _address(column_scale)),
        *(_address(bias), _address(products), torch.get_num_threads()),
    )
    return products


def panels_of(integers: torch.Tensor) -> torch.Tensor:
    """Lay out a weight's integers [rows, columns] int8 for `multiply`: [panels, pairs of columns, 16 rows, 2]."""
    rows, columns = integers.shape
    padded = torch.nn.functional.pad(integers, (0, columns % 2, 0, -rows % PANEL))
    return padded.reshape(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def dequantize(
    quantized: QuantizedWeight, weight_format: WeightFormat, columns: int, dtype: torch.dtype, bits: int
) -> torch.Tensor:
    """Dequantize a packed weight: returns [rows, columns] of `dtype`.

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


def multiply_packed(
    inputs: torch.Tensor, quantized: QuantizedWeight, weight_format: WeightFormat, bits: int, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """Multiply few tokens by a packed weight, in C, which dequantizes on the fly.

    Args:
        inputs: [tokens, columns] float32 or bfloat16; bias: [rows] or None.
        quantized, bits: as for `dequantize`.
    Returns:
        [tokens, rows], or None where the C code cannot compute it.
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
    """Return zero points, float32 in the shape of the scale; for codebooks they are 0."""
    if quantized.zero is not None:
        return quantized.zero.float()
    return torch.full_like(quantized.scale, weight_format.middle)


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


def _library_for(tensor, dtype):
    supported = tensor.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return library() if supported else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None, with a line in the log, where they cannot be compiled."""
    processor = json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True)  # machines may share a home folder
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, processor]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantwatt"
    path = folder / f"fused-{key}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:  # several jobs may compile at once
                built = Path(temporary) / path.name
                command = [os.environ.get("CC", "cc"), *FLAGS, str(SOURCE), "-o", str(built), "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                built.replace(path)
        compiled = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        message = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        print(f"fused.c is not compiled ({message}): slower functions of PyTorch are used instead.", file=sys.stderr)
        return None
    for name, arguments in ARGUMENTS.items():
        if hasattr(compiled, name):
            getattr(compiled, name).argtypes = [TYPES[letter] for letter in arguments]
    return compiled
