"""4-bit weights per output channel or group, 8-bit inputs, 32-bit integer sums: a Triton kernel of quantwatt's own.

No library serves the format: torchao has such a product for CPUs only, gptqmodel's QQQ takes symmetric weights in
groups of 128 alone and rounds their scales anew, and both int8 products of PyTorch ask for 8 bits in memory. Here the
weight stays packed as the checkpoint has it, two codes a byte, and is taken apart in registers.
"""

import torch

from quantwatt.formats.quantized_weight import pack
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "Triton W4A8", "triton", 1e-3
LEAST_GROUP = 64  # a tensor core adds 32 integers at a time, and the two codes of a byte are two products


def refusal(layer, device):
    weights = layer["weights"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] != "integer" or weights["bits"] > 4 or weights.get("zero_point") == "float":
        return "takes integers of 4 bits or fewer, with integer zero points"
    if layer["activations"] is None:
        return "takes quantized inputs"
    if weights["granularity"] == "group" and weights["group_size"] % LEAST_GROUP:
        return f"takes groups of multiples of {LEAST_GROUP}"
    return None


def quantize(activation_format, inputs, static_grid, order):
    """Inputs [tokens, columns] as the kernel reads them.

    Returns:
        (codes [2, tokens, bytes] int8: those of even columns, then those of odd ones, which a missing last one is made
        up for by 0; scale [tokens] float32; zero [tokens] float32 or None).
    """
    if order is not None:
        inputs = inputs[:, order]
    codes, scale, zero = activation_format.encode(inputs, static_grid)
    codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    tokens = len(codes)
    pairs = codes.reshape(tokens, codes.shape[1] // 2, 2).permute(2, 0, 1).contiguous()
    scale, zero = (None if part is None else part.expand(tokens, 1).reshape(-1).contiguous() for part in (scale, zero))
    return pairs, scale, zero


fused_quantize = torch.compile(quantize, dynamic=True)


class Layer(QuantizedLinear):
    def _hold(self, quantized, weight_format, dtype):
        quantized, order = quantized.in_group_order()
        self._buffer("order", order, torch.int64)
        self.group = weight_format.group_size if weight_format.granularity == "group" else 0
        zero = quantized.zero
        if zero is None:
            zero = torch.full_like(quantized.scale, weight_format.middle)
        self._buffer("codes", pack(quantized.codes, 4), torch.uint8)  # [rows, bytes]
        self._buffer("scale", quantized.scale.T.contiguous(), torch.float32)  # [groups, rows]
        self._buffer("zero", zero.T.contiguous(), torch.int8)
        if not self.activation_format.symmetric:  # what an input of 1 everywhere gives
            self._buffer("sums", quantized.dequantize(weight_format).sum(dim=1), torch.float32)
        else:
            self.sums = None

    def _product(self, inputs):
        from quantwatt.inference import w4a8_product  # needs Triton

        flat = inputs.reshape(-1, self.in_features)
        step = fused_quantize if inputs.is_cuda else quantize
        codes, scale, zero = step(self.activation_format, flat, self.static_grid, self.order)
        outputs = w4a8_product.product(
            codes, scale, zero, self.codes, self.scale, self.zero, self.sums, self.bias, self.group, inputs.dtype
        )
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
