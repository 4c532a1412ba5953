"""4-bit integer weights in groups, bfloat16 inputs: PyTorch's int4 product on the CPU, for few tokens.

The product is vectorized for bfloat16 only, and its time grows with the number of tokens. For other inputs or many
tokens, the weight is dequantized and multiplied in the inputs' type.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.inference.kernels import unpacked

NAME, PACKAGE, BOUND = "torch int4 or unpacked", "torch", 1e-3
GROUPS = (256, 128, 64, 32)
MIDDLE = 8  # the code that the product subtracts
LAID = (64, 32, 16)  # rows that are interleaved in the packed weight; it depends on the CPU's vector width
# Up to this many tokens the int4 product is used. The two paths take the same time at about 40 tokens on CPUs that
# multiply bfloat16 (AMX), and at more tokens on other CPUs.
FEW = 40


def group_of(columns: int, own: int) -> int | None:
    """Return how many columns share a scale in the product: a divisor of the format's group size `own`, or None."""
    return next((size for size in GROUPS if columns % size == 0 == own % size), None)


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights, columns = layer["weights"], layer["in_features"]
    if device != "cpu" or "kernel_size" in layer or layer["activations"] is not None:
        return "multiplies inputs that are not quantized by matrices on the CPU"
    if (weights["format"], weights.get("bits")) != ("integer", 4):
        return "takes 4-bit integers"
    width = min(weights["group_size"], columns) if weights["granularity"] == "group" else columns
    if layer["out_features"] % LAID[0] or group_of(columns, width) is None:
        return f"takes rows in multiples of {LAID[0]} and groups of 32 to 256 columns"
    return "takes groups of consecutive columns" if "group_index" in layer["parts"] else None


def codes_of(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """Invert PyTorch's packing that interleaves `rows` rows: returns [all rows, columns] uint8."""
    blocks = packed.reshape(-1, packed.shape[1] * 2, rows // 2).transpose(1, 2).contiguous()  # [blocks, half, columns]
    return torch.cat([blocks & 15, blocks >> 4], dim=1).reshape(len(packed), -1)


class Layer(unpacked.Layer):
    laid: int | None
    group: int
    grid: torch.Tensor

    def _hold(self, quantized, weight_format, dtype):
        super()._hold(quantized, weight_format, dtype)
        self.laid = None
        if dtype != torch.bfloat16:
            return
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.codes.int().contiguous(), 1)
        self.laid = next(rows for rows in LAID if torch.equal(codes_of(packed, rows), quantized.codes))
        self._buffer("codes", packed, torch.uint8)
        group = group_of(self.in_features, weight_format.group_width(self.in_features))
        self.group = group  # ty: ignore[invalid-assignment]  (`refusal` saw that there is one)
        zero = MIDDLE if quantized.zero is None else quantized.zero.float()
        grid = torch.stack([quantized.scale, (MIDDLE - zero) * quantized.scale], dim=2)  # value of code 8
        grid = grid[:, torch.arange(0, self.in_features, self.group) // weight_format.group_width(self.in_features)]
        self._buffer("grid", grid.transpose(0, 1).contiguous(), dtype)  # [groups, rows, 2]

    def _packed(self):
        return super()._packed() if self.laid is None else (codes_of(self.codes, self.laid), 8)

    def _product(self, inputs):
        flat = inputs.reshape(-1, self.in_features)
        if self.laid is None or inputs.dtype != torch.bfloat16 or not 0 < len(flat) <= FEW:
            return super()._product(inputs)
        outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(flat.contiguous(), self.codes, self.group, self.grid)
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
