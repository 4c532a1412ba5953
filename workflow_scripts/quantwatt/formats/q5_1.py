"""q5_1: 5 bits, a scale and a minimum for each 32 inputs, 6 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.layout import Bits, Half
from quantwatt.formats.gguf.simple import SimpleFormat


@dataclass(frozen=True)
class Format(SimpleFormat):
    TYPE, bits = "Q5_1", 5
    minima = True
    LAYOUT = (("scale", Half()), ("minimum", Half()), ("codes", Bits(1, shift=4, parts=4)), ("codes", Bits(4)))
