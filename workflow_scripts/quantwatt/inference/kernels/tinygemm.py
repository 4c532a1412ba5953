"""4-bit weights in groups, bfloat16 inputs: PyTorch's tinygemm, for CUDA devices of capability 8.0 or more.

The product is made for few tokens. For many tokens, the weight is dequantized to bfloat16 in each call and multiplied:
it stays 4 bits wide in memory, and dequantizing takes little time compared with the product.

The product has no zero point: a value is (code - 8) * scale + offset, with scale and offset in bfloat16.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "torch._weight_int4pack_mm", "torch", 1e-2
GROUPS = (32, 64, 128, 256)
TILE_ROWS, TILE_COLUMNS = 8, 128  # size of a tile in the packed layout
FEW_TOKENS = 32


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights = layer["weights"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] != "integer" or weights["bits"] > 4:
        return "takes integers of 4 bits or fewer"
    if layer["activations"] is not None:
        return "takes 16-bit inputs"
    if weights["granularity"] == "group" and weights["group_size"] not in GROUPS:
        return f"takes groups of {', '.join(map(str, GROUPS))}"
    return None


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes [rows, columns] uint8 below 16, in whole tiles, as `torch._convert_weight_to_int4pack(..., 8)` does.

    Each of a warp's 32 lanes holds its operands of the tensor core: one row, and four of every 16 columns, at
    2 * (lane % 4) + {0, 1, 8, 9}. The eight codes of 32 columns form one word; codes at even places are in its low
    half.

    Returns:
        [rows / 8, columns / 128, 32, 4] int32. Layout: pytorch, aten/src/ATen/native/cuda/int4mm.cu.
    """
    # rows: (tile, 8); columns: (tile, word 4, sixteens 2, eights 2, lane % 4, pair 2)
    parts = codes.reshape(len(codes) // TILE_ROWS, TILE_ROWS, codes.shape[1] // TILE_COLUMNS, 4, 2, 2, 4, 2)
    nibbles = parts.permute(0, 2, 1, 6, 3, 7, 4, 5).flatten(5).long()  # [.., row, lane % 4, word, 8]
    words = (nibbles << torch.arange(0, 32, 4, device=codes.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int().flatten(2, 3)


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """The inverse of `packed`: [rows, columns] int32."""
    nibbles = words.unsqueeze(-1) >> torch.arange(0, 32, 4, device=words.device, dtype=torch.int32) & 15
    parts = nibbles.unflatten(4, (2, 2, 2)).unflatten(2, (TILE_ROWS, 4))  # [.., row, lane % 4, word, pair, 16s, 8s]
    return parts.permute(0, 2, 1, 4, 6, 7, 3, 5).reshape(words.shape[0] * TILE_ROWS, -1)


def dequantized(words: torch.Tensor, grid: torch.Tensor, group: int) -> torch.Tensor:
    """Dequantize words with their grid [groups, rows, 2]: returns [rows, columns] bfloat16, padding included."""
    codes = unpacked(words)
    scale, offset = grid.transpose(0, 1).unsqueeze(2).unbind(-1)  # [rows, groups, 1]
    return ((codes - 8).to(grid.dtype).unflatten(1, (-1, group)) * scale + offset).flatten(1)


class Layer(QuantizedLinear):
    order: torch.Tensor | None
    codes: torch.Tensor
    grid: torch.Tensor
    group: int

    dequantized = staticmethod(dequantized)

    def _hold(self, quantized, weight_format, dtype):
        quantized, order = quantized.in_group_order()
        self._buffer("order", order, torch.int64)
        columns, self.group = self.in_features, GROUPS[-1]
        if weight_format.granularity == "group":
            self.group = weight_format.group_size
        # Padding columns are multiplied by inputs of 0; the outputs of padding rows are cut off.
        more_columns, more_rows = -columns % math.lcm(TILE_COLUMNS, self.group), -self.out_features % TILE_ROWS
        middle = weight_format.middle  # becomes code 8, so that codes of fewer bits also lie close to 8
        codes = torch.nn.functional.pad(quantized.codes + (8 - middle), (0, more_columns, 0, more_rows))
        groups = codes.shape[1] // self.group
        zero = middle if quantized.zero is None else quantized.zero.float()
        scale = quantized.scale.float()
        grid = torch.stack([scale, (middle - zero) * scale], dim=2)  # [rows, groups or 1, 2]
        if grid.shape[1] == 1:
            grid = grid.expand(-1, groups, -1)
        grid = torch.nn.functional.pad(grid, (0, 0, 0, groups - grid.shape[1], 0, more_rows))
        self._buffer("codes", packed(codes), torch.int32)
        self._buffer("grid", grid.transpose(0, 1).contiguous(), torch.bfloat16)

    def _product(self, inputs):
        rounded = inputs.reshape(-1, self.in_features).to(torch.bfloat16)
        if len(rounded) == 0:
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        if self.order is not None:
            rounded = rounded[:, self.order]
        rounded = torch.nn.functional.pad(rounded, (0, self.grid.shape[0] * self.group - self.in_features))
        if len(rounded) <= FEW_TOKENS:
            outputs = torch._weight_int4pack_mm(rounded, self.codes, self.group, self.grid)
        else:
            outputs = rounded @ self.dequantized(self.codes, self.grid, self.group).T
        outputs = outputs[:, : self.out_features].to(inputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
