"""q4_1: 4 bits, a scale and a minimum for each 32 inputs, 5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.layout import Bits, Half
from quantwatt.formats.gguf.simple import SimpleFormat


@dataclass(frozen=True)
class Format(SimpleFormat):
    TYPE, bits = "Q4_1", 4
    minima = True
    LAYOUT = (("scale", Half()), ("minimum", Half()), ("codes", Bits(4)))
