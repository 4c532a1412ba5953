"""Integer weights, integer activations, 32-bit integer sums: C for CPUs with AVX2, AVX-VNNI or AVX-512 VNNI, or oneDNN.

The whole layer is one call. Weights may share a scale per tensor, output channel or group of inputs. Weights of up to
four bits take four bits in memory, others eight. Where a layer has one scale per output, oneDNN's product computes it
for those numbers of tokens where it is faster on this machine (kernel_times.py), as with AMX; the layer then holds its
weight in oneDNN's layout too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from quantwatt.formats.activations import IntegerActivations
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
from quantwatt.inference import fused, int8, kernel_times
from quantwatt.inference.kernels import onednn_int8
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "int8 in C or oneDNN", "torch", 1e-3


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights = layer["weights"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if reason := onednn_int8.inexpressible(layer, groups=True):
        return reason
    if weights["granularity"] == "group" and weights["group_size"] % int8.STEP:
        return f"takes groups in multiples of {int8.STEP}"
    return None if int8.paths() else "needs a C compiler and a CPU with AVX2"


class Layer(QuantizedLinear):
    activation_format: IntegerActivations
    order: torch.Tensor | None
    packed: torch.Tensor
    zero: torch.Tensor | None
    scale: torch.Tensor
    sums: torch.Tensor
    offset: torch.Tensor | None
    reordered: torch.Tensor | None
    group: int
    path: int
    in_order: bool
    one_scale: bool  # for each output, so that oneDNN may compute it
    by_onednn: dict[tuple[int, int], bool]  # {(tokens, threads): whether it does}

    def _hold(self, quantized, weight_format, dtype):
        quantized, order = quantized.in_group_order()
        self.group, bits = weight_format.group_width(self.in_features), weight_format.bits
        zero = quantized.zero
        if zero is None:
            zero = torch.full((1, 1), weight_format.middle, dtype=torch.uint8)
        self.path = int8.paths()[-1]
        weight = int8.laid(quantized.codes, zero, quantized.scale.float(), self.group, bits, self.path)
        more = len(weight.sums) - self.out_features
        offset = None if self.bias is None else torch.nn.functional.pad(self.bias.float(), (0, more))
        held = {"order": order, **vars(weight), "offset": offset, "reordered": None}
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)
        self.in_order = order is None
        self.one_scale, self.by_onednn = len(weight.scale) == 1 and not onednn_int8.saturates(), {}

    def _product(self, inputs):
        if not self.in_order:
            inputs = inputs[..., self.order]
        if inputs.dtype == torch.float16:
            return self._product(inputs.float()).to(inputs.dtype)
        if torch.compiler.is_compiling():
            return int8.linear(inputs, self.weight_held, self.offset, self.static_grid, *self.settings)
        if self.one_scale and self._prefers_onednn(inputs.numel() // self.in_features):
            return self._onednn(inputs)
        if self.call is None:
            self.call = int8.Product(self.weight_held, self.offset, self.static_grid, *self.settings)
        return self.call(inputs)

    @property
    def weight_held(self):
        return int8.Weight(self.packed, self.zero, self.scale, self.sums)

    @property
    def settings(self):
        return self.out_features, self.in_features, self.group, self.activation_format, self.path

    def _prefers_onednn(self, tokens):
        key = tokens, torch.get_num_threads()
        known = self.by_onednn.get(key)
        if known is None:
            counted, threads = kernel_times.counted_as(tokens), key[1]
            known = kernel_times.is_faster(self.in_features, self.out_features, counted, threads)
            self.by_onednn[key] = known
        return known

    def _onednn(self, inputs):
        rows = self.out_features
        if self.reordered is None:
            integers = int8.integers_of(self.packed, self.zero, rows, self.in_features)
            self.reordered = torch.ops.onednn.qlinear_prepack(integers, None)
        flat, offset = inputs.reshape(-1, self.in_features), self.offset
        codes, scale, zero = fused.quantize(flat, self.activation_format, self.static_grid)
        sums = onednn_int8.multiply(codes, self.reordered, torch.ones(1), torch.zeros(1, dtype=torch.int32))
        outputs = fused.rescale(
            *(sums, scale, zero, self.activation_format.lowest, self.scale[0, :rows], self.sums[:rows]),
            *(None if offset is None else offset[:rows], inputs.dtype),
        )
        return outputs.reshape(*inputs.shape[:-1], rows)


def products(columns: int, rows: int, tokens: int) -> dict[str, Callable[[], object]]:
    """{"C", "oneDNN": a layer's product of these sizes}, to be timed."""
    generator = torch.Generator().manual_seed(0)
    weight_format = load_format({"format": "integer", "bits": 8, "granularity": "channel", "group_size": None,
                                 "symmetric": True})  # fmt: skip
    codes = torch.randint(1, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    quantized = QuantizedWeight(codes, torch.ones(rows, 1), None)
    activations = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
    layer = Layer.build(quantized, weight_format, activations, None, torch.float32)
    inputs = torch.randn(tokens, columns, generator=generator)
    in_c = int8.Product(layer.weight_held, None, None, *layer.settings)

    def run_in_c():
        int8.KEPT.forget()
        in_c(inputs)

    return {"C": run_in_c, "oneDNN": lambda: layer._onednn(inputs)}
