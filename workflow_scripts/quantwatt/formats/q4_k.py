"""q4_k: 4 bits, scales and minima of 6 bits for each 32 inputs, 4.5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.k_quants import MinimaFormat
from quantwatt.formats.gguf.layout import Bits, Half, SixBits


@dataclass(frozen=True)
class Format(MinimaFormat):
    TYPE, bits = "Q4_K", 4
    GROUP, EXTREME = 32, 63
    FIRST, STEPS = -1.0, 20
    LAYOUT = (("scale", Half()), ("minimum", Half()), ("scales", SixBits()), ("codes", Bits(4, parts=4)))
