"""How the values on a format's grid are chosen.

A solver module offers

    solve(weight, weight_format, settings, statistics) -> Solution
    NEEDS = (...)       names of the statistics that it reads (quantwatt/quantize/observers.py), where it reads any

or, where it learns all layers of a block together,

    NEEDS_BLOCK = True
    solve_block(block, plans, batches, targets, family, settings, held) -> {layer: Solution}    as solvers/brecq.py

or, where a library solves in an environment of its own,

    EXTERNAL = "the library's name"
    solve_layer(weight, inputs, weights, settings)          there, as solvers/auto_gptq.py
    read(folder, layer) -> QuantizedWeight                  here, of what was solved

Weights are [rows, columns] float32 with one row per output; inputs are [tokens, columns].
"""

from dataclasses import dataclass

from quantwatt.formats.quantized_weight import QuantizedWeight


@dataclass
class Solution:
    """A quantized weight and how it was found.

    damping: what was added to the Hessian's diagonal as a fraction of its mean, or None.
    fallback: the rung of the failure ladder that was needed, or None when the first try succeeded.
    """

    weight: QuantizedWeight
    damping: float | None = None
    fallback: str | None = None
