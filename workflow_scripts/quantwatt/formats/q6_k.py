"""q6_k: 6 bits and a scale of 8 bits for each 16 inputs, 6.5625 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.k_quants import SymmetricFormat
from quantwatt.formats.gguf.layout import Bits, Half, Signed


@dataclass(frozen=True)
class Format(SymmetricFormat):
    TYPE, bits = "Q6_K", 6
    EXTREME = -128
    _empty_code = 128  # a signed byte of 0
    LAYOUT = (
        ("codes", Bits(4, parts=2)),
        ("codes", Bits(2, shift=4, parts=2)),
        ("scales", Signed()),
        ("scale", Half()),
    )
