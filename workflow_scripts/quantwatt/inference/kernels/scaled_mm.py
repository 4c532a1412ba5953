"""Floats times floats with their scales, by PyTorch's scaled products: for GPUs whose tensor cores multiply them.

Float8 with a scale for each row of both sides (Ada and Hopper, capability 8.9), MXFP8, MXFP4 and NVFP4 with a scale for
each block (Blackwell, capability 10.0). Sums are in float32, outputs in bfloat16.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.nn.functional import ScalingType, SwizzleType

from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "torch scaled_mm", "torch", 1e-2
CAPABILITY = {"float8": (8, 9), "mxfp8": (10, 0), "mxfp4": (10, 0), "nvfp4": (10, 0)}
INPUTS, OUTPUTS = 32, 16  # what the sides of a weight must be multiples of
TILE_ROWS, TILE_BLOCKS, TILE_PARTS = 128, 4, 4  # of the layout of blocks' scales


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights, activations = layer["weights"], layer["activations"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if activations is None or activations.get("format") != weights["format"] or weights["format"] not in CAPABILITY:
        return "takes weights and inputs in the same format of floats"
    if "group_index" in layer["parts"]:
        return "takes blocks of neighbouring inputs"
    if {weights.get("element"), activations.get("element")} - {"e4m3", "e2m1", None}:
        return "takes E4M3 and E2M1"
    if weights.get("granularity") == "block":
        return "takes one scale for a row"
    if layer["in_features"] % INPUTS or layer["out_features"] % OUTPUTS:
        return f"takes multiples of {INPUTS} inputs and {OUTPUTS} outputs"
    return None


def in_tiles(scales: torch.Tensor) -> torch.Tensor:
    """Lay out scales of blocks [rows, blocks] as cuBLAS reads them, filled up with zeros to tiles of 128 by 4.

    A tile is 32 lines of 16: row i of it is in line i % 32, at 4 * (i // 32). Source: cuBLAS, "1D block scaling factors
    layout".
    """
    rows, blocks = scales.shape
    bytes_of = functional.pad(scales.view(torch.uint8), (0, -blocks % TILE_BLOCKS, 0, -rows % TILE_ROWS))
    tiles = bytes_of.reshape(-1, TILE_PARTS, TILE_ROWS // TILE_PARTS, bytes_of.shape[1] // TILE_BLOCKS, TILE_BLOCKS)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(scales.dtype)


def in_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes of 4 bits [rows, columns] to [rows, columns / 2] bytes, the first code of two in the lower half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


class Layer(QuantizedLinear):
    activation_format: Any  # of float8, MX or NVFP4
    codes: torch.Tensor
    scale: torch.Tensor
    tensor_scale: torch.Tensor | None
    kind: str

    def _hold(self, quantized, weight_format, dtype):
        self.kind = type(self.activation_format).__module__.rpartition(".")[2]
        if self.kind == "microscaling":
            self.kind = f"mxfp{weight_format.bits}"
        codes, scale = quantized.codes, quantized.scale.float().contiguous()
        self._buffer("codes", codes if weight_format.bits == 8 else in_pairs(codes), torch.uint8)
        self._buffer("tensor_scale", quantized.tensor_scale, torch.float32)
        if self.kind != "float8":
            held = weight_format.held_grid(scale, None, quantized.tensor_scale)[0].stored
            scale = in_tiles(held)
        self.register_buffer("scale", scale if self.kind != "float8" else scale.T.contiguous(), persistent=False)

    def _product(self, inputs):
        if inputs.is_cuda:
            check_capability(self.kind, torch.cuda.get_device_capability(inputs.device))
        flat = inputs.reshape(-1, self.in_features)
        if len(flat) == 0:
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        codes, scales = self._encoded(flat)
        recipe, swizzle = self._recipe()
        own = [self.scale] if self.tensor_scale is None else [self.scale, self.tensor_scale]
        outputs = functional.scaled_mm(
            codes, self._typed(self.codes).T, scales, recipe, own, recipe, swizzle, swizzle,
            output_dtype=torch.bfloat16,
        ).to(inputs.dtype)  # fmt: skip
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features)

    def _encoded(self, inputs):
        """Return (codes of inputs [tokens, columns], their scales) as the product takes them."""
        if self.kind == "float8":
            codes, scale = self.activation_format.encode(inputs.float(), self.static_grid)
            return codes.view(torch.float8_e4m3fn), [scale.expand(len(inputs), 1).contiguous()]
        blocks = inputs.float().unflatten(1, (-1, self.activation_format.block_size))
        codes, *scales = self.activation_format.encode(blocks, self.static_grid)
        codes, scales[0] = codes.flatten(1), in_tiles(scales[0])
        return self._typed(codes if self.kind == "mxfp8" else in_pairs(codes)), scales

    def _typed(self, codes):
        return codes.view(torch.float8_e4m3fn if self.kind in ("float8", "mxfp8") else torch.float4_e2m1fn_x2)

    def _recipe(self):
        if self.kind == "float8":
            return [ScalingType.RowWise], [SwizzleType.NO_SWIZZLE]
        if self.kind == "nvfp4":
            recipe = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
            return recipe, [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
        return [ScalingType.BlockWise1x32], [SwizzleType.SWIZZLE_32_4_4]


def check_capability(kind: str, capability: tuple[int, int]) -> None:
    """Raise NotImplementedError where a GPU has no such product."""
    if capability < CAPABILITY[kind]:
        needed, found = (".".join(map(str, version)) for version in (CAPABILITY[kind], capability))
        raise NotImplementedError(f"{kind} needs a GPU of capability {needed} or more, and this one has {found}")
