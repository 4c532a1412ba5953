"""GPTQ of gptqmodel 7.7.0: solved in the library's environment, read from files in the main environment.

Dynamic groups narrower than 128 columns, the block size, are fitted as in auto-gptq (see auto_gptq.py).
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
CLIP_NORM = 2.4  # the power of the error that the clip search minimises


@dataclass(frozen=True, kw_only=True)
class Solver(ExternalSolver):
    """The library's GPTQ."""

    DAMPING_TRIES: ClassVar = 1  # the library raises the damping itself

    def read(self, folder: str | Path, layer: str) -> QuantizedWeight:
        return exchange.read(folder, layer)

    def solve_layer(
        self, weight: torch.Tensor, inputs: torch.Tensor, weights: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """As in ExternalSolver; the library itself raises the damping if the Hessian cannot be factorized."""
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ

        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        config = QuantizeConfig(
            bits=weights["bits"],
            group_size=weights["group_size"] or -1,
            sym=weights["symmetric"],
            mse=CLIP_NORM if weights["clip_search"] else 0.0,
            desc_act=self.act_order,
            act_group_aware=False,  # would use a different column order
            static_groups=self.static_groups,
            damp_percent=self.damping,
            fallback=None,
            offload_to_disk=False,
        )
        task = GPTQ(layer, config)
        task.quantizer.configure(perchannel=True)
        task.add_batch(inputs, None)
        values, scale, zero, g_idx, _, _, damping, _ = task.quantize(blocksize=BLOCK_SIZE)
        if damping == 1.0:  # the library gave up and rounded to nearest
            raise torch.linalg.LinAlgError("gptqmodel could not factorize the Hessian with any damping")
        return values, scale, zero, g_idx, damping
