"""8-bit weights per output channel, 8-bit activations, 32-bit integer sums: PyTorch's int8 product."""

import torch

from quantwatt.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "torch._int_mm", "torch", 1e-3
CUDA_TOKENS = 17  # the least that the product takes on CUDA
CUDA_MULTIPLE = 8  # of both sides of the weight, there


def refusal(layer, device):
    weights, activations = layer["weights"], layer["activations"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] != "integer":
        return "takes integers"
    if (weights["bits"], weights["granularity"], weights["symmetric"]) != (8, "channel", True):
        return "takes symmetric 8-bit weights per channel"
    if activations is None or (activations["bits"], activations["symmetric"]) != (8, True):
        return "takes symmetric 8-bit inputs"
    if device == "cuda" and (layer["in_features"] % CUDA_MULTIPLE or layer["out_features"] % CUDA_MULTIPLE):
        return f"takes sides that are multiples of {CUDA_MULTIPLE}"
    return None


class Layer(QuantizedLinear):
    def _hold(self, quantized, weight_format, dtype):
        codes = (quantized.codes.to(torch.int16) - 128).to(torch.int8)  # [rows, columns]
        self._buffer("codes", codes.T.contiguous().T, torch.int8)  # the product reads it transposed
        self._buffer("scale", quantized.scale.T.contiguous(), torch.float32)  # [1, rows]

    def _product(self, inputs):
        codes, scale, _ = self.activation_format.encode(inputs.reshape(-1, inputs.shape[-1]), self.static_grid)
        tokens = len(codes)
        if codes.is_cuda and tokens < CUDA_TOKENS:
            codes = torch.nn.functional.pad(codes, (0, 0, 0, CUDA_TOKENS - tokens))
        sums = torch._int_mm(codes, self.codes.T)[:tokens]  # [tokens, rows] int32
        outputs = sums.float() * scale * self.scale
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], -1)
