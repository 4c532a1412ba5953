"""The scales or zero points of a weight's groups, in memory no larger than a format stores them.

Kernels hold them so, and expand what they need: scales of 8 bits for blocks of 16 as float32 would take as much memory
as the codes of half the weights.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GroupNumbers:
    """One number for each group of a row: what is stored, times a factor.

    stored: [row blocks, groups], float32, float16, uint8 or int8, or float8 (E8M0 or E4M3)
    factor: that of neighbouring groups, [row blocks, blocks of groups] float16, or of all, [1, 1] float32, or None
    rows: how many neighbouring rows, of one row block, have the same numbers
    """

    stored: torch.Tensor
    factor: torch.Tensor | None = None
    rows: int = 1

    def expanded(self, start: int, stop: int) -> torch.Tensor:
        """Return the numbers of the rows from `start` to `stop`: [rows, groups] float32."""
        numbers = self._of_rows(self.stored, start, stop).float()
        if self.factor is not None:
            factor = self.factor if len(self.factor) == 1 else self._of_rows(self.factor, start, stop)
            numbers = numbers * factor.float().repeat_interleave(numbers.shape[1] // factor.shape[1], dim=1)
        return numbers

    def _of_rows(self, tensor, start, stop):
        if self.rows == 1:
            return tensor[start:stop]
        return tensor[torch.arange(start, stop, device=tensor.device) // self.rows]
