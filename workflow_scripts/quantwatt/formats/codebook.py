"""A 4-bit code chooses one of 16 values, scaled by the largest magnitude of a block (QLoRA, arXiv 2305.14314)."""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class CodebookFormat:
    """Blocks of `block` inputs of one row; a row's last block may be narrower."""

    block: int = 64

    codebook: ClassVar[torch.Tensor]  # [16] float32, the value of each code

    bits = 4
    scale_dtype = torch.float32
    has_zero = False

    @classmethod
    def from_settings(cls, settings):
        return cls(settings["block"])

    def group_size(self, columns):
        return min(self.block, columns)

    def fit(self, values):  # [rows, width] -> [rows, 1]
        scale = values.abs().amax(dim=1, keepdim=True)
        return torch.where(scale > 0, scale, 1.0), None

    def encode(self, values, scale, zero):
        ordered, code_of = self.codebook.sort()
        boundaries = (ordered[1:] + ordered[:-1]) / 2
        return code_of[torch.bucketize((values / scale).contiguous(), boundaries)].to(torch.uint8)

    def decode(self, codes, scale, zero):
        return self.codebook[codes.long()] * scale
