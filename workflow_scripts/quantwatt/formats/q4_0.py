"""q4_0: 4 bits and a scale for each 32 inputs, 4.5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.layout import Bits, Half
from quantwatt.formats.gguf.simple import SimpleFormat


@dataclass(frozen=True)
class Format(SimpleFormat):
    TYPE, bits = "Q4_0", 4
    LAYOUT = (("scale", Half()), ("codes", Bits(4)))
