"""torchao: int8 and float8 weights per output channel, int4 weights per group, by `quantize_` on one layer.

"dynamic" configurations also quantize the activations, per token at run time.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.formats import trial
from quantwatt.formats.library import LibraryFormat, aligned
from quantwatt.formats.packing import pack, unpack

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

BITS = {
    "int8-weight-only": (8, None),
    "int8-dynamic": (8, 8),
    "float8-weight-only": (8, None),
    "float8-dynamic": (8, 8),
    "int4-weight-only": (4, None),
}
ATTRIBUTES = "attributes"  # the part with the non-tensor attributes of torchao's tensor: torchao's JSON, as bytes
PADDED_ROWS, PADDED_COLUMNS = 8, 1024  # the int4 layout on CUDA is padded to multiples of these


@dataclass(frozen=True)
class Format(LibraryFormat):
    """One of torchao's configurations."""

    LIBRARY: ClassVar = "torchao"

    configuration: str  # one of BITS
    group_size: int  # inputs that share a scale; for int4 only

    @property
    def name(self) -> str:
        return self.configuration

    @property
    def bits(self) -> tuple[int, int | None]:
        return BITS[self.configuration]

    def convert(self, linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Module:
        """Convert a float layer to torchao's layer, on the CPU.

        Raises:
            DataError: torchao does not take the weight's shape, or this machine's hardware.
        """
        configuration = configuration_of(self.configuration, self.group_size)
        from torchao.quantization.quant_api import quantize_

        layer = _linear(linear.weight.detach().to("cpu", dtype), linear.bias, dtype)
        refusal = f"torchao's {self.configuration} does not take a weight of {list(layer.weight.shape)}"
        try:
            quantize_(layer, configuration)
        except (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            raise DataError(f"{refusal}: {str(error).rstrip('.')}.") from error
        if type(layer.weight) in (torch.Tensor, torch.nn.Parameter):  # not quantized, without an error
            raise DataError(f"{refusal}.")
        return layer

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return the parts of the weight: torchao's tensors and attributes, or for int4 {"codes", "scale", "zero"}.

        torchao packs int4 for the processor at hand, and other processors read the bytes differently. The checkpoint
        therefore stores the codes in order, [rows, columns / 2], the first code of a pair in the high half.
        """
        weight = module.weight
        if type(weight).__name__ == "Int4OpaqueTensor":
            scale, zero = (part.T.contiguous() for part in weight.scale_and_zero.unbind(-1))  # [rows, groups]
            return {"codes": pack(_codes(weight.qdata, *weight.shape), 4), "scale": scale, "zero": zero}
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, attributes = flatten_tensor_state_dict({"layer.weight": weight.detach()})
        parts = {name.removeprefix("layer._weight_"): tensor.contiguous().cpu() for name, tensor in tensors.items()}
        text = torch.frombuffer(bytearray(attributes["layer.weight"].encode()), dtype=torch.uint8)
        return {**parts, ATTRIBUTES: text}

    def restore(
        self,
        state: Mapping[str, torch.Tensor],
        layer: Mapping[str, Any],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: str,
    ) -> torch.nn.Module:
        """Restore the layer of a checkpoint, packed as torchao's kernel on the device reads it."""
        _quiet()
        if self.configuration == "int4-weight-only":
            return _linear(_int4_weight(state, self.group_size, layer["in_features"], device), bias, dtype)
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        tensors = {
            f"layer._weight_{name}": aligned(part.to(device)) for name, part in state.items() if name != ATTRIBUTES
        }
        attributes = {"layer.weight": bytes(state[ATTRIBUTES].tolist()).decode(), "tensor_names": '["layer.weight"]'}
        return _linear(unflatten_tensor_state_dict(tensors, attributes)[0]["layer.weight"], bias, dtype)

    def unsupported(self, device: str) -> str | None:
        return trial.failure(self, device)

    def dequantize(self, state: Mapping[str, torch.Tensor], layer: Mapping[str, Any]) -> torch.Tensor:
        if self.configuration != "int4-weight-only":
            return state["qdata"].float() * state["scale"].float()
        columns = layer["in_features"]
        scale, zero = (state[part].float().repeat_interleave(self.group_size, dim=1) for part in ("scale", "zero"))
        return (unpack(state["codes"], 4, columns).float() - 8) * scale + zero  # zero: the value of code 8


def configuration_of(name: str, group_size: int) -> "AOBaseConfig":
    """Return torchao's configuration without `set_inductor_config`, which would affect all compiling in the process."""
    _quiet()
    from torchao import quantization
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    per_row: dict[str, Any] = {"granularity": quantization.PerRow(), "set_inductor_config": False}
    return {
        "int8-weight-only": lambda: quantization.Int8WeightOnlyConfig(**per_row),
        "int8-dynamic": lambda: quantization.Int8DynamicActivationInt8WeightConfig(**per_row),
        "float8-weight-only": lambda: quantization.Float8WeightOnlyConfig(**per_row),
        "float8-dynamic": lambda: quantization.Float8DynamicActivationFloat8WeightConfig(**per_row),
        "int4-weight-only": lambda: PrototypeInt4WeightOnlyConfig(group_size, set_inductor_config=False),
    }[name]()


def _linear(weight, bias, dtype):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(aligned(bias.detach().to(weight.device, dtype)), requires_grad=False)
    return layer.eval()


def _codes(packed, rows, columns):
    """Unpack the CPU's int4 layout to codes [rows, columns] uint8.

    The layout permutes the codes and differs between processors. To determine the permutation, the index of each place
    is packed, four bits at a time.
    """

    def halves(packed):
        return torch.stack([packed & 15, packed >> 4]).flatten().long()

    places = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns)
    indices = torch.zeros(rows * columns, dtype=torch.long)
    for shift in range(0, (rows * columns - 1).bit_length(), 4):
        digits = torch.ops.aten._convert_weight_to_int4pack_for_cpu(places >> shift & 15, 1)
        indices += halves(digits) << shift
    codes = torch.empty(rows * columns, dtype=torch.uint8)
    codes[indices] = halves(packed).to(torch.uint8)
    return codes.reshape(rows, columns)


def _int4_weight(state, group, columns, device):
    """Build torchao's int4 tensor in the layout of the CPU or of CUDA."""
    from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor
    from torchao.quantization import Int4TilePackedTo4dTensor
    from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

    codes, scale, zero = unpack(state["codes"], 4, columns), state["scale"], state["zero"]
    shape = codes.shape
    if torch.device(device).type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        grid = pack_tinygemm_scales_and_zeros(scale, zero, scale.dtype)
        return Int4OpaqueTensor(packed, grid, [1, group], shape)
    more_rows, more_columns = -shape[0] % PADDED_ROWS, -columns % PADDED_COLUMNS
    pad = torch.nn.functional.pad  # with zeros; torchao pads the inputs with zeros too
    codes = pad(codes, (0, more_columns, 0, more_rows)).to(device)
    scale, zero = (pad(part, (0, more_columns // group, 0, more_rows)).to(device) for part in (scale, zero))
    packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).contiguous(), 8)
    grid = pack_tinygemm_scales_and_zeros(scale, zero, scale.dtype)
    return Int4TilePackedTo4dTensor(packed, grid, [1, group], shape)


def _quiet():
    """Silence torchao's notes about compiled kernels that this version of torch does not use."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
