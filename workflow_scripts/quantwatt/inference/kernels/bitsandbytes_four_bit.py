"""NF4 or FP4 weights, 16-bit activations: bitsandbytes's product."""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.packing import pack
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "bitsandbytes matmul_4bit", "bitsandbytes", 1e-2


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights = layer["weights"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] not in ("nf4", "fp4"):
        return "takes nf4 and fp4"
    if layer["activations"] is not None:
        return "takes 16-bit inputs"
    if layer["in_features"] % weights["group_size"] or "group_index" in layer["parts"]:
        return "takes whole groups of consecutive columns"
    return None


class Layer(QuantizedLinear):
    codes: torch.Tensor
    absmax: torch.Tensor
    codebook: torch.Tensor
    kind: str
    group_size: int
    dtype: torch.dtype
    state: Any  # QuantState

    def _hold(self, quantized, weight_format, dtype):
        self._buffer("codes", pack(quantized.codes, 4).reshape(-1, 1), torch.uint8)
        self._buffer("absmax", quantized.scale.reshape(-1).contiguous(), torch.float32)
        self._buffer("codebook", weight_format.codebook.clone(), torch.float32)
        self.kind, self.group_size = type(weight_format).__module__.rpartition(".")[2], weight_format.group_size
        self.dtype, self.state = dtype, None

    def _product(self, inputs):
        import bitsandbytes
        from bitsandbytes.functional import QuantState

        if self.state is None:  # created in the first call, when the layer is on its device
            shape = torch.Size((self.out_features, self.in_features))
            self.state = QuantState(
                self.absmax, shape, self.codebook, self.group_size, quant_type=self.kind, dtype=self.dtype
            )
        return bitsandbytes.matmul_4bit(inputs, self.codes.t(), quant_state=self.state, bias=self.bias)
