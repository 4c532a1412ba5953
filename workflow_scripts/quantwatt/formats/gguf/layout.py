"""Layout of ggml's blocks in bytes (the structs of ggml-common.h).

A block is a sequence of fields. A field writes [blocks, count] values to [blocks, bytes], and reads them back. Codes of
more than 4 bits are spread over two fields, which hold different bits of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bits:
    """Some bits of unsigned codes.

    A block's codes are cut into `parts`, and each part into 8 / `bits` runs of equal length: byte i of a part holds
    code i of every run, that of the first run in its lowest bits.

    bits: 1, 2, 4 or 8, how many bits of a code; shift: the lowest of them.
    """

    bits: int
    shift: int = 0
    parts: int = 1

    def size(self, count: int) -> int:
        """Return the bytes of `count` codes."""
        return count * self.bits // 8

    def write(self, codes: torch.Tensor) -> torch.Tensor:
        runs = self._own(codes).reshape(len(codes), self.parts, 8 // self.bits, -1)
        packed = runs[:, :, 0].clone()
        for run in range(1, 8 // self.bits):
            packed |= runs[:, :, run] << self.bits * run
        return packed.flatten(1)

    def read(self, packed: torch.Tensor) -> torch.Tensor:
        parts = packed.reshape(len(packed), self.parts, 1, -1)
        runs = [parts >> self.bits * run & 2**self.bits - 1 for run in range(8 // self.bits)]
        return torch.cat(runs, dim=2).flatten(1) << self.shift

    def _own(self, codes):
        return codes >> self.shift & 2**self.bits - 1


class Signed:
    """Codes from 0 to 255, stored as signed bytes: code 128 is 0."""

    def size(self, count: int) -> int:
        return count

    def write(self, codes: torch.Tensor) -> torch.Tensor:
        return codes ^ 128

    read = write


class Half:
    """A float16 number; in memory it is float32."""

    def size(self, count: int) -> int:
        return 2 * count

    def write(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.to(torch.float16).contiguous().view(torch.uint8)

    def read(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.contiguous().view(torch.float16).float()


class SixBits:
    """Eight scales and eight minima of 6 bits in 12 bytes (get_scale_min_k4).

    The first four of each are whole bytes' low bits; above these lie the upper two bits of the last four, whose lower
    four bits share the last four bytes.
    """

    def size(self, count: int) -> int:
        return count * 6 // 8

    def write(self, codes: torch.Tensor) -> torch.Tensor:
        scales, minima = codes.chunk(2, dim=1)
        first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, minima)]
        return torch.cat([*first, scales[:, 4:] & 15 | minima[:, 4:] << 4], dim=1)

    def read(self, packed: torch.Tensor) -> torch.Tensor:
        scales, minima, last = packed.split(4, dim=1)
        upper = [part >> 6 << 4 for part in (scales, minima)]
        return torch.cat([scales & 63, upper[0] | last & 15, minima & 63, upper[1] | last >> 4], dim=1)


Field = Bits | Signed | Half | SixBits
Layout = Sequence[tuple[str, Field]]  # (name of the values, field) in the order of the bytes


def write(layout: Layout, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return blocks [blocks, bytes] uint8 of {name: [blocks, count]}: codes uint8, numbers of a `Half` float32."""
    return torch.cat([field.write(values[name]) for name, field in layout], dim=1)


def read(layout: Layout, blocks: torch.Tensor, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return the inverse of `write`.

    Args:
        blocks: [blocks, bytes] uint8; counts: {name: values in a block}.
    """
    values = {}
    parts = blocks.split([field.size(counts[name]) for name, field in layout], dim=1)
    for (name, field), part in zip(layout, parts, strict=True):
        found = field.read(part)
        values[name] = values[name] | found if name in values else found
    return values


def block_bytes(layout: Layout, counts: Mapping[str, int]) -> int:
    """Return the bytes of a block."""
    return sum(field.size(counts[name]) for name, field in layout)
