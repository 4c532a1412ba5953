"""Floating-point elements of 4, 6 and 8 bits: rounding to them, their codes and their values.

A code is a sign bit, exponent bits and mantissa bits, as in OCP's Microscaling Formats 1.0 (section 5.3) and OCP 8-bit
Floating Point 1.0. The codes of positive values ascend with the values, so a code without its sign counts the steps
from zero. Values are rounded to the nearest, ties to the even code; values beyond the largest become the largest.
"""

import functools
import math
from dataclasses import dataclass

import torch

FLOAT32_MANTISSA, FLOAT32_BIAS = 23, 127
EXPONENT_OF_FLOAT32 = 0x7F800000  # the exponent's bits


@dataclass(frozen=True)
class Minifloat:
    """A sign, `exponent_bits` and `mantissa_bits`; `largest` is the largest finite value.

    dtype: torch's type, to which it casts several times faster than arithmetic on tensors does; None where it has none.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    largest: float
    dtype: torch.dtype | None = None

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def least_exponent(self) -> int:
        """Exponent of the smallest normal value; below it, values are subnormal: steps have one size."""
        return 1 - self.bias

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest power of two."""
        return math.frexp(self.largest)[1] - 1

    @property
    def largest_code(self) -> int:
        """Code of the largest finite value."""
        steps = self.largest / 2.0 ** (self.largest_exponent - self.mantissa_bits)
        return (self.largest_exponent - self.least_exponent) * 2**self.mantissa_bits + int(steps)

    def values(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the value of every code, [2**bits] float32; NaN and infinity where the element has them."""
        return _values(self, torch.device(device))

    def round(self, values: torch.Tensor) -> torch.Tensor:
        """Return the nearest value of the element, elementwise, in a new tensor; NaN stays NaN.

        Args:
            values: float32.
        """
        values = values.clamp(-self.largest, self.largest)
        # The sum's last bit is worth one step, so the addition itself rounds: to nearest, ties to even.
        shift = self._binade(values).mul_(1.5 * 2 ** (FLOAT32_MANTISSA - self.mantissa_bits))
        return values.add_(shift).sub_(shift)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Return the code of the nearest value, elementwise, uint8; negative values that round to zero keep the sign.

        Args:
            values: float32; a NaN stays NaN in 8 bits, and gets the code of zero in fewer, where there is none.
        """
        if self.dtype is not None:
            return values.clamp(-self.largest, self.largest).to(self.dtype).view(torch.uint8)
        # The nearest value is one of E4M3's, too, whose codes torch's cast gives.
        wider = self.round(values).copysign_(values).to(E4M3.dtype).view(torch.uint8)
        return _of_wider(self, values.device).index_select(0, wider.flatten().int()).view(values.shape)

    def bracket(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (low, high), the codes of the neighbours of each value, uint8; equal beyond the largest value.

        A value of the element is its own lower neighbour.
        """
        binade, steps = self._steps(values)
        first = self._first(binade)
        below = torch.where(steps < 0, -(first + (-steps).ceil()), first + steps.floor())  # steps from zero
        above = torch.where(values < -self.largest, below, (below + 1).clamp_(max=self.largest_code))
        return self._signed(below.int()), self._signed(above.int())

    def _binade(self, values):
        """Return the power of two at or below each magnitude; for subnormal values that of the smallest normal one."""
        powers = values.view(torch.int32).bitwise_and(EXPONENT_OF_FLOAT32).view(torch.float32)
        return powers.clamp_(min=2.0**self.least_exponent)

    def _steps(self, values):
        """Return the binade of each value within the range, and the value in steps of its binade."""
        values = values.nan_to_num(0.0).clamp_(-self.largest, self.largest)
        binade = self._binade(values)
        return binade, values.div_(binade).mul_(2**self.mantissa_bits)

    def _first(self, binade):
        """Return the steps that lie before a binade: those of all binades below it, less its own smaller ones."""
        exponent = (binade.view(torch.int32) >> FLOAT32_MANTISSA) - (FLOAT32_BIAS + self.least_exponent)
        return exponent << self.mantissa_bits

    def _signed(self, count):
        """Return the codes of counts of steps from zero, which may be negative."""
        return (count.abs() + ((count < 0).int() << self.bits - 1)).to(torch.uint8)


@functools.cache
def _values(element, device):
    codes = torch.arange(2 ** (element.bits - 1))
    exponent, mantissa = codes >> element.mantissa_bits, codes & 2**element.mantissa_bits - 1
    significand = (exponent > 0) + mantissa / 2**element.mantissa_bits
    magnitude = significand * torch.exp2((exponent.clamp(min=1) - element.bias).float())
    beyond = codes > element.largest_code
    magnitude[beyond] = torch.nan
    if element.name == "e5m2":  # as in IEEE 754, the exponent of ones is infinity and NaN; E4M3 has NaN alone
        magnitude[beyond & (mantissa == 0)] = torch.inf
    return torch.cat([magnitude, -magnitude]).to(device)


E4M3 = Minifloat("e4m3", 4, 3, 448.0, torch.float8_e4m3fn)
E5M2 = Minifloat("e5m2", 5, 2, 57344.0, torch.float8_e5m2)
E2M3 = Minifloat("e2m3", 2, 3, 7.5)
E3M2 = Minifloat("e3m2", 3, 2, 28.0)
E2M1 = Minifloat("e2m1", 2, 1, 6.0)
ELEMENTS = {element.name: element for element in (E4M3, E5M2, E2M3, E3M2, E2M1)}


@functools.cache
def _of_wider(element, device):
    """Return the element's code of each of E4M3's codes, [256] uint8; 0 where the element does not have the value."""
    codes = torch.zeros(256, dtype=torch.uint8)
    codes[E4M3.encode(element.values()).int()] = torch.arange(2**element.bits, dtype=torch.uint8)
    return codes.to(device)
