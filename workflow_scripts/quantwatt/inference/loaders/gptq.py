"""GPTQ's packed integers in safetensors, as auto-gptq and gptqmodel write them, by the denoiser's own names.

The layout is told in quantwatt.inference.exports.gptq: int32 words of codes and zero points, float16 scales, and each
column's group. In version 1 stored zero points are one too small; `checkpoint_format: gptq_v2` has them as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
from quantwatt.inference.loaders import Foreign, Layer, Source, named, tensors

FILES = ("*.safetensors", "*.json")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
WORD = 32
FIRST_ZERO = {"gptq": 1, "gptq_v2": 0}  # the zero point that is stored as 0, by `checkpoint_format`


def read(source: Source, denoiser: torch.nn.Module, config: Mapping[str, Any]) -> Foreign:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: the configuration or a layer's tensors are not GPTQ's.
    """
    settings, held = source.configuration("gptq"), tensors(source)
    bits, group = settings.get("bits"), settings.get("group_size", -1)
    first = FIRST_ZERO.get(settings.get("checkpoint_format", "gptq"))
    if bits not in BITS or not isinstance(group, int) or group == 0 or first is None:
        raise DataError(
            f"{source.folder}: bits {bits}, group_size {group} and checkpoint_format "
            f"{settings.get('checkpoint_format')} are not read: bits are {', '.join(map(str, BITS))}, formats "
            f"{' and '.join(FIRST_ZERO)}."
        )
    found = Foreign()
    for name in named(held, ".qweight"):
        parts = {part: held.pop(f"{name}.{part}", None) for part in PARTS}
        try:
            found.layers[name] = _layer(parts, bits, group, first)
        except (ValueError, RuntimeError, IndexError) as error:
            raise DataError(
                f"{source.folder}: the tensors of {name} are not GPTQ's of {bits} bits ({error})."
            ) from error
    found.rest = held
    return found


def _layer(parts, bits, group, first):
    if absent := [part for part in PARTS[:3] if parts[part] is None]:
        raise ValueError(f"there is no {absent[0]}")
    qweight, qzeros, scales = (parts[part] for part in PARTS[:3])
    groups, rows = scales.shape
    columns = len(qweight) * WORD // bits
    if qweight.dtype != torch.int32 or qzeros.dtype != torch.int32 or qweight.shape[1] != rows:
        raise ValueError("words are not int32, or not one column per output")
    width = columns if group < 0 else min(group, columns)
    if columns % width or groups != columns // width:
        raise ValueError(f"{groups} groups of {width} are not {columns} inputs")
    in_order = torch.arange(columns, dtype=torch.int32) // width
    index = in_order if parts["g_idx"] is None else parts["g_idx"].int()
    if index.shape != in_order.shape or index.min() < 0 or index.max() >= groups:
        raise ValueError("g_idx names groups that are not there")
    codes = unpack(qweight, bits)[:columns].T.contiguous()  # [rows, columns]
    zeros = unpack(qzeros.T, bits)[:rows].int() + first  # [rows, groups]
    symmetric = bool((zeros == 2 ** (bits - 1)).all())
    if int(zeros.max()) > 2**bits - 1:
        raise ValueError("a zero point is above the highest code")
    weights = {
        "format": "integer", "bits": bits, "granularity": "channel" if group < 0 else "group",
        "group_size": None if group < 0 else group, "symmetric": symmetric, "narrow": not symmetric,
        "zero_point": "integer", "clip_search": False,
    }  # fmt: skip
    weight = QuantizedWeight(
        codes,
        scales.T.float().contiguous(),
        None if symmetric else zeros.to(torch.uint8),
        group_index=None if torch.equal(index, in_order) else index,
    )
    return Layer(weights, weight.state(load_format(weights)))


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack int32 words [length, width] to codes [length * 32 / bits, width] uint8, the lowest bits first."""
    little = np.ascontiguousarray(words.numpy().astype("<i4"))[:, None, :].view(np.uint8)  # [length, 1, width * 4]
    of_words = little.reshape(len(words), words.shape[1], 4).transpose(0, 2, 1).reshape(-1, words.shape[1])
    stream = np.unpackbits(of_words, axis=0, bitorder="little")  # [length * 32, width]
    count = len(stream) // bits
    by_code = stream[: count * bits].reshape(count, bits, -1).astype(np.uint8)
    weights = (1 << np.arange(bits)).astype(np.uint16)[None, :, None]
    return torch.from_numpy((by_code * weights).sum(axis=1).astype(np.uint8))
