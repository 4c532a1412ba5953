"""Integer grid: `bits` wide, symmetric or asymmetric, per tensor, output channel or group of inputs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Format:
    """Settings of resources/schemas/formats/integer.schema.json.

    Asymmetric: values = (code - zero) * scale, with the range widened to hold 0 so that zero stays exact.
    Symmetric: zero is the fixed code 2**(bits-1) and the grid runs from -(2**(bits-1) - 1) to its opposite, so that
    8 bits are the int8 values from -127 to 127.
    """

    bits: int
    granularity: str = "channel"
    group: int | None = None
    symmetric: bool = False

    scale_dtype = torch.float32

    @classmethod
    def from_settings(cls, settings):
        return cls(settings["bits"], settings["granularity"], settings["group_size"], settings["symmetric"])

    @property
    def has_zero(self):
        return not self.symmetric

    def group_size(self, columns):
        return min(self.group, columns) if self.granularity == "group" else columns

    def fit(self, values):  # [rows, width] -> [rows, 1]
        if self.granularity == "tensor":
            low, high = values.amin().expand(len(values), 1), values.amax().expand(len(values), 1)
        else:
            low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        if self.symmetric:
            scale = torch.maximum(-low, high) / (2 ** (self.bits - 1) - 1)
            return torch.where(scale > 0, scale, 1.0), None
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / (2**self.bits - 1)
        scale = torch.where(scale > 0, scale, 1.0)
        return scale, torch.round(-low / scale).to(torch.uint8)

    def encode(self, values, scale, zero):
        if self.symmetric:
            middle = 2 ** (self.bits - 1)
            return torch.round(values / scale).add_(middle).clamp_(1, 2 * middle - 1).to(torch.uint8)
        return torch.round(values / scale).add_(zero).clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def decode(self, codes, scale, zero):
        offset = 2 ** (self.bits - 1) if self.symmetric else zero.float()
        return (codes.float() - offset) * scale
