"""q2_k: 2 bits, scales and minima of 4 bits for each 16 inputs, 2.625 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.k_quants import MinimaFormat
from quantwatt.formats.gguf.layout import Bits, Half


@dataclass(frozen=True)
class Format(MinimaFormat):
    TYPE, bits = "Q2_K", 2
    GROUP, EXTREME = 16, 15
    FIRST, STEPS, ABSOLUTE = -0.5, 15, True
    LAYOUT = (("scales", Bits(4)), ("codes", Bits(2, parts=2)), ("scale", Half()), ("minimum", Half()))
