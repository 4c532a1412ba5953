"""FP4: a sign bit and three bits of a small float, coded as in bitsandbytes."""

from dataclasses import dataclass

import torch

from quantwatt.formats.codebook import CodebookFormat

_MAGNITUDES = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12  # in the order of their codes


@dataclass(frozen=True)
class Format(CodebookFormat):
    codebook = torch.cat([_MAGNITUDES, -_MAGNITUDES])
