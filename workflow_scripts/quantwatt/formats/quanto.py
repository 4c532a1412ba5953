"""optimum-quanto: 8-bit integer and float weights per output channel, 4- and 2-bit per group; 16-bit activations.

A group is `group_size` inputs, or the next smaller multiple of 32 that divides the inputs, or else a whole row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.formats import trial
from quantwatt.formats.library import LibraryFormat, aligned
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers, which quanto imports)

BITS = {"qint8": 8, "qint4": 4, "qint2": 2, "qfloat8": 8}
LEAST_GROUP = 32  # smallest group, in inputs; group sizes are multiples of it
STEP = 16  # columns per read of torch's int8 product on the CPU; the reads are aligned and may pass the end of a row


@dataclass(frozen=True)
class Format(LibraryFormat):
    """One of quanto's types."""

    LIBRARY: ClassVar = "optimum-quanto"

    weights: str  # one of BITS
    group_size: int  # inputs that share a scale, below 8 bits

    @property
    def name(self) -> str:
        return self.weights

    @property
    def bits(self) -> tuple[int, int | None]:
        return BITS[self.weights], None

    def convert(self, linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Module:
        """Convert a float layer to quanto's frozen layer, on the CPU.

        Raises:
            DataError: quanto's kernel for the CPU does not take the weight's shape.
        """
        quanto = _import()
        plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        plain.weight = torch.nn.Parameter(linear.weight.detach().to("cpu", dtype), requires_grad=False)
        if linear.bias is not None:
            plain.bias = torch.nn.Parameter(linear.bias.detach().to("cpu", dtype), requires_grad=False)
        module = _empty(quanto, plain, self)
        try:
            module.freeze()
        except RuntimeError as error:
            refusal = f"quanto's {self.weights} does not take a weight of {list(plain.weight.shape)}"
            raise DataError(f"{refusal}: {str(error).rstrip('.')}.") from error
        return module.eval().requires_grad_(False)

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return {"data", "scale", and below 8 bits "shift"} in quanto's packing, which is equal on all devices."""
        names = {
            "weight._data": "data",
            "weight._data._data": "data",
            "weight._scale": "scale",
            "weight._shift": "shift",
        }
        stored = module.state_dict()
        return {part: stored[name].detach().cpu().clone() for name, part in names.items() if name in stored}

    def restore(
        self,
        state: Mapping[str, torch.Tensor],
        layer: Mapping[str, Any],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: str,
    ) -> torch.nn.Module:
        """Restore the layer of a checkpoint, packed as quanto's kernel on the device reads it."""
        quanto = _import()
        plain = torch.nn.Linear(
            layer["in_features"], layer["out_features"], bias is not None, device="meta", dtype=dtype
        )
        module = _empty(quanto, plain, self)
        unused_scale = torch.ones((), dtype=dtype)  # scale of the activations, which is not read
        tensors = {
            "weight._data._data" if "shift" in state else "weight._data": state["data"],
            **{f"weight._{part}": state[part] for part in ("scale", "shift") if part in state},
            **({} if bias is None else {"bias": bias.detach().to(dtype)}),
            **{"input_scale": unused_scale, "output_scale": unused_scale},
        }
        placed = {name: aligned(tensor.to(device)) for name, tensor in tensors.items()}
        module.load_state_dict(placed, assign=True)
        return module.eval().requires_grad_(False)

    def unsupported(self, device: str) -> str | None:
        return trial.failure(self, device)

    def dequantize(self, state: Mapping[str, torch.Tensor], layer: Mapping[str, Any]) -> torch.Tensor:
        scale = state["scale"].float()
        if "shift" not in state:
            return state["data"].float() * scale
        bits = BITS[self.weights]
        codes = unpack(state["data"], bits)[: len(scale)].float()  # [rows * groups, width]
        return (codes * scale - state["shift"].float()).reshape(layer["out_features"], layer["in_features"])


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack codes: first the codes in the lowest bits of all bytes, then those in the next higher bits."""
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])


def _empty(quanto, plain, weight_format):
    """Create quanto's layer for a plain layer, with the group size chosen as quanto does for 128 and more inputs."""
    module = quanto.QLinear.from_module(plain, weights=weight_format.weights)
    largest, columns = weight_format.group_size, plain.in_features
    if BITS[weight_format.weights] < 8 and columns > largest:
        sizes = range(largest, 0, -LEAST_GROUP)
        module.weight_group_size = next((size for size in sizes if columns % size == 0), None)
    return module


def _import():
    from optimum import quanto
    from optimum.quanto.library import qbytes_mm
    from optimum.quanto.library.extensions import cpp

    qbytes_mm.qbytes_int8pack_mm = _int8_product  # ty: ignore[invalid-assignment]
    # When quanto first unpacks, it would compile four lines of C++ into its installed package; `unpack` replaces them.
    cpp.ext._lib = SimpleNamespace(unpack=unpack)
    return quanto


def _int8_product(activations, weights, scales):
    """Multiply 16-bit activations by 8-bit weights [rows, columns] with torch's product where it reads only the rows.

    The product reads STEP columns at a time, from aligned addresses. With other numbers of columns, it would crash or
    add the values that follow a row.
    """
    from optimum.quanto.library import qbytes_mm

    columns = activations.shape[-1]
    if columns % STEP:
        return qbytes_mm.qbytes_mm(activations, weights, scales)
    tokens = aligned(activations.reshape(-1, columns).contiguous())
    product = torch._weight_int8pack_mm(tokens, aligned(weights), scales.flatten())
    return product.reshape(*activations.shape[:-1], len(weights))
