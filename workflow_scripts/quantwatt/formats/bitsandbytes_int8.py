"""LLM.int8() (arXiv 2208.07339) by bitsandbytes: 8-bit weights per output channel, 8-bit activations per token.

Input columns with an entry beyond the threshold are multiplied in 16 bits. With threshold 0, all are multiplied in 8
bits, which saves energy. bitsandbytes casts bfloat16 and float32 inputs to float16 to quantize them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quantwatt.formats import trial
from quantwatt.formats.library import LibraryFormat, aligned


@dataclass(frozen=True)
class Format(LibraryFormat):
    """LLM.int8()."""

    LIBRARY: ClassVar = "bitsandbytes"
    name = "bitsandbytes-int8"
    bits = (8, 8)

    threshold: float  # input columns with a larger entry are multiplied in 16 bits

    def convert(self, linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Module:
        from bitsandbytes.nn import Int8Params

        weight = Int8Params(linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False).to("cpu")  # ty: ignore
        layer = {"in_features": linear.in_features, "out_features": linear.out_features}
        return self.restore({"codes": weight.CB, "scale": weight.SCB}, layer, linear.bias, dtype, "cpu")

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return {"codes": [rows, columns] int8, "scale": [rows] float32, the largest magnitudes}."""
        # The first forward pass moves codes and scale out of the parameter.
        scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return {
            part: tensor.detach().cpu().clone() for part, tensor in (("codes", module.weight.data), ("scale", scale))
        }

    def restore(
        self,
        state: Mapping[str, torch.Tensor],
        layer: Mapping[str, Any],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: str,
    ) -> torch.nn.Module:
        """Restore the layer in evaluation mode: in training mode, bitsandbytes multiplies in 16 bits on the CPU."""
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        _quiet()
        module = Linear8bitLt(
            layer["in_features"], layer["out_features"], bias is not None, False, self.threshold, device="meta"
        )
        codes, scale = (aligned(state[part].to(device)) for part in ("codes", "scale"))
        module.weight = Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scale)  # ty: ignore
        if bias is not None:
            module.bias = torch.nn.Parameter(aligned(bias.detach().to(device, dtype)), requires_grad=False)
        return module.eval()

    def unsupported(self, device: str) -> str | None:
        return trial.failure(self, device)

    def dequantize(self, state: Mapping[str, torch.Tensor], layer: Mapping[str, Any]) -> torch.Tensor:
        return state["codes"].float() * (state["scale"] / 127)[:, None]

    def simulated(self, device: str) -> str | None:
        """Return why bitsandbytes does not multiply integers on the device although it computes the layer, or None."""
        import bitsandbytes  # noqa: F401  (registers its kernels)

        native = torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::int8_linear_matmul", device.upper())
        return None if native else f"bitsandbytes multiplies 8-bit integers as float32 on this {device}."


def _quiet():
    """Silence the warning, once per product, that inputs are cast to float16: it would fill the log."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
