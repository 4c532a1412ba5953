"""GPTQ of auto-gptq 0.7.1: solved in the library's environment, read from files in the main environment.

With dynamic groups narrower than 128 columns, the library's block size, the library fits a group's grid to weights
without the corrections from earlier columns of the same block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.quantize import exchange
from quantwatt.quantize.solvers import ExternalSolver

BLOCK_SIZE = 128  # the library's default


@dataclass(frozen=True, kw_only=True)
class Solver(ExternalSolver):
    """The library's GPTQ."""

    DAMPING_TRIES: ClassVar = 4

    def read(self, folder: str | Path, layer: str) -> QuantizedWeight:
        return exchange.read(folder, layer)

    def solve_layer(
        self, weight: torch.Tensor, inputs: torch.Tensor, weights: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """As in ExternalSolver; the library has no fallback if the Hessian cannot be factorized."""
        from auto_gptq.quantization.gptq import GPTQ

        if not torch.cuda.is_available():  # the library calls it on every device
            torch.cuda.synchronize = lambda device=None: None  # ty: ignore[invalid-assignment]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        task = GPTQ(layer)
        task.quantizer.configure(weights["bits"], perchannel=True, sym=weights["symmetric"], mse=weights["clip_search"])
        task.add_batch(inputs, None)
        scale, zero, g_idx = task.fasterquant(
            blocksize=BLOCK_SIZE,
            percdamp=self.damping,
            group_size=weights["group_size"] or -1,
            actorder=self.act_order,
            static_groups=self.static_groups,
        )
        return layer.weight.data, scale, zero, g_idx, self.damping
