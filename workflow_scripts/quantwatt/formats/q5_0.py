"""q5_0: 5 bits and a scale for each 32 inputs, 5.5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.layout import Bits, Half
from quantwatt.formats.gguf.simple import SimpleFormat


@dataclass(frozen=True)
class Format(SimpleFormat):
    TYPE, bits = "Q5_0", 5
    LAYOUT = (("scale", Half()), ("codes", Bits(1, shift=4, parts=4)), ("codes", Bits(4)))
