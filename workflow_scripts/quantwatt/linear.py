"""Quantized layers. Each replaces a torch.nn.Linear, the simulated one also a torch.nn.Conv2d; only that one holds a
float weight."""

import torch

from quantwatt import convolution
from quantwatt.activations import ActivationFormat

CUDA_TOKENS = 17  # the least that the int8 product takes on CUDA


class QuantizedLinear(torch.nn.Module):
    """What every quantized layer does around its product: scale the input before, add the low-rank branch after, put
    in what is known of the first token.

    A subclass keeps the weight (`_hold`) and multiplies by it, bias included (`_product`).
    """

    @classmethod
    def build(cls, quantized, weight_format, activations, bias, dtype, geometry=None):
        """A layer on the CPU.

        Args:
            quantized: QuantizedWeight.
            activations: completed `activations` settings of a method, or None.
            bias: [rows] or None.
            dtype: of the layer's inputs and outputs.
            geometry: Convolution, or None of a linear layer.
        """
        layer = cls()
        layer.geometry = geometry
        layer.in_features, layer.out_features = quantized.codes.shape[1], quantized.codes.shape[0]
        layer.activation_format = ActivationFormat.from_settings(activations)
        layer._buffer("bias", bias, dtype)
        layer._buffer("input_factor", quantized.input_factor, dtype)
        layer._buffer("down", quantized.down, dtype)
        layer._buffer("up", quantized.up, dtype)
        first = quantized.first_output
        if first is not None and bias is not None:
            first = first + bias.float().to(first.device)
        layer._buffer("first_output", first, dtype)
        layer._buffer("activation_scale", quantized.activation_scale, torch.float32)
        layer._buffer("activation_zero", quantized.activation_zero, torch.float32)
        layer._hold(quantized, weight_format, dtype)
        return layer

    def _buffer(self, name, tensor, dtype):
        persistent = name == "bias"  # all else is in the checkpoint in the format's own form
        self.register_buffer(name, None if tensor is None else tensor.detach().to(dtype), persistent=persistent)

    @property
    def static_grid(self):
        return None if self.activation_scale is None else (self.activation_scale, self.activation_zero)

    def forward(self, inputs):
        if self.first_output is not None:
            inputs = inputs[:, 1:]
        if self.input_factor is not None:
            inputs = inputs * self.input_factor
        outputs = self._product(inputs)
        if self.down is not None:
            outputs = outputs + inputs @ self.down.T @ self.up.T
        if self.first_output is not None:
            outputs = torch.cat([self.first_output.expand(len(outputs), 1, -1), outputs], dim=1)
        return outputs


class SimulatedLinear(QuantizedLinear):
    """Values of the format in a 16-bit matrix product: right results, meaningless cost."""

    def _hold(self, quantized, weight_format, dtype):
        self._buffer("weight", quantized.dequantize(weight_format), dtype)

    def _product(self, inputs):
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return convolution.product(inputs, self.weight, self.bias, self.geometry)


class Int8Linear(QuantizedLinear):
    """8-bit weights per output channel, 8-bit activations, 32-bit integer sums (PyTorch's int8 product)."""

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


class FourBitLinear(QuantizedLinear):
    """NF4 or FP4 weights through bitsandbytes, 16-bit activations."""

    def _hold(self, quantized, weight_format, dtype):
        from quantwatt.formats import pack

        self._buffer("codes", pack(quantized.codes, 4).reshape(-1, 1), torch.uint8)
        self._buffer("absmax", quantized.scale.reshape(-1).contiguous(), torch.float32)
        self._buffer("codebook", weight_format.codebook.clone(), torch.float32)
        self.kind, self.block = type(weight_format).__module__.rpartition(".")[2], weight_format.block
        self.dtype, self.state = dtype, None

    def _product(self, inputs):
        import bitsandbytes
        from bitsandbytes.functional import QuantState

        if self.state is None:  # made once the layer is on its device
            shape = torch.Size((self.out_features, self.in_features))
            self.state = QuantState(
                self.absmax, shape, self.codebook, self.block, quant_type=self.kind, dtype=self.dtype
            )
        return bitsandbytes.matmul_4bit(inputs, self.codes.t(), quant_state=self.state, bias=self.bias)
