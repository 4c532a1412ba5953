"""Quantized linear layers. Each replaces a torch.nn.Linear and holds no float weight, except the simulated one."""

import torch

from quantwatt.activations import ActivationFormat

CUDA_TOKENS = 17  # the least that the int8 product takes on CUDA


def _factor(quantized, dtype):
    return None if quantized.input_factor is None else quantized.input_factor.to(dtype)


class SimulatedLinear(torch.nn.Linear):
    """Values of the format in a 16-bit matrix product: right results, meaningless cost."""

    @classmethod
    def build(cls, quantized, weight_format, activations, bias, dtype):
        rows, columns = quantized.codes.shape
        layer = cls(columns, rows, bias=bias is not None, device="meta")
        layer.activation_format = ActivationFormat.from_settings(activations)
        layer.weight = torch.nn.Parameter(quantized.dequantize(weight_format).to(dtype), requires_grad=False)
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias.to(dtype), requires_grad=False)
        layer.register_buffer("input_factor", _factor(quantized, dtype), persistent=False)
        return layer

    def forward(self, inputs):
        if self.input_factor is not None:
            inputs = inputs * self.input_factor
        if self.activation_format is not None:
            inputs = self.activation_format.fake_quantize(inputs)
        return super().forward(inputs)


class Int8Linear(torch.nn.Module):
    """8-bit weights per output channel, 8-bit activations per token, 32-bit integer sums (PyTorch's int8 product)."""

    @classmethod
    def build(cls, quantized, weight_format, activations, bias, dtype):
        layer = cls()
        codes = (quantized.codes.to(torch.int16) - 128).to(torch.int8)  # [rows, columns]
        layer.activation_format = ActivationFormat.from_settings(activations)
        layer.register_buffer("codes", codes.T.contiguous().T, persistent=False)  # the product reads it transposed
        layer.register_buffer("scale", quantized.scale.T.float().contiguous(), persistent=False)  # [1, rows]
        layer.register_buffer("input_factor", _factor(quantized, dtype), persistent=False)
        layer.register_buffer("bias", None if bias is None else bias.to(dtype), persistent=False)
        return layer

    def forward(self, inputs):
        if self.input_factor is not None:
            inputs = inputs * self.input_factor
        codes, scale = self.activation_format.encode(inputs.reshape(-1, inputs.shape[-1]))
        tokens = len(codes)
        if codes.is_cuda and tokens < CUDA_TOKENS:
            codes = torch.nn.functional.pad(codes, (0, 0, 0, CUDA_TOKENS - tokens))
        sums = torch._int_mm(codes, self.codes.T)[:tokens]  # [tokens, rows] int32
        outputs = (sums.float() * scale * self.scale).to(inputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], -1)


class FourBitLinear(torch.nn.Module):
    """NF4 or FP4 weights through bitsandbytes, 16-bit activations."""

    @classmethod
    def build(cls, quantized, weight_format, activations, bias, dtype):
        from bitsandbytes.functional import QuantState

        from quantwatt.formats import pack

        layer = cls()
        rows, columns = quantized.codes.shape
        layer.register_buffer("codes", pack(quantized.codes, 4).reshape(-1, 1), persistent=False)
        layer.register_buffer("bias", None if bias is None else bias.to(dtype), persistent=False)
        layer.register_buffer("absmax", quantized.scale.reshape(-1).contiguous(), persistent=False)
        layer.register_buffer("codebook", weight_format.codebook.clone(), persistent=False)
        layer.register_buffer("input_factor", _factor(quantized, dtype), persistent=False)
        kind = type(weight_format).__module__.rpartition(".")[2]
        layer.new_state = lambda: QuantState(
            absmax=layer.absmax, shape=torch.Size((rows, columns)), code=layer.codebook,
            blocksize=weight_format.block, quant_type=kind, dtype=dtype,
        )  # fmt: skip
        layer.state = None
        return layer

    def forward(self, inputs):
        import bitsandbytes

        if self.input_factor is not None:
            inputs = inputs * self.input_factor
        if self.state is None:  # made once the layer is on its device
            self.state = self.new_state()
        return bitsandbytes.matmul_4bit(inputs, self.codes.t(), quant_state=self.state, bias=self.bias)
