"""q5_k: 5 bits, scales and minima of 6 bits for each 32 inputs, 5.5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.k_quants import MinimaFormat
from quantwatt.formats.gguf.layout import Bits, Half, SixBits


@dataclass(frozen=True)
class Format(MinimaFormat):
    TYPE, bits = "Q5_K", 5
    GROUP, EXTREME = 32, 63
    FIRST, STEPS = -0.5, 15
    LAYOUT = (
        ("scale", Half()),
        ("minimum", Half()),
        ("scales", SixBits()),
        ("codes", Bits(1, shift=4)),
        ("codes", Bits(4, parts=4)),
    )
