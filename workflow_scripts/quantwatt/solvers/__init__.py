"""How the values on a format's grid are chosen.

A solver module offers

    solve(weight, weight_format, settings, statistics) -> Solution
    new_statistics(columns) -> object with observe(inputs) and scaled(factor), only where it reads calibration data

Weights are [rows, columns] float32 with one row per output; inputs are [tokens, columns].
"""

from dataclasses import dataclass

from quantwatt.formats import QuantizedWeight


@dataclass
class Solution:
    """A quantized weight and how it was found.

    damping: what was added to the Hessian's diagonal as a fraction of its mean, or None.
    fallback: the rung of the failure ladder that was needed, or None when the first try succeeded.
    """

    weight: QuantizedWeight
    damping: float | None = None
    fallback: str | None = None
