"""q8_0: 8 bits and a scale for each 32 inputs, 8.5 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf.layout import Half, Signed
from quantwatt.formats.gguf.simple import ByteFormat


@dataclass(frozen=True)
class Format(ByteFormat):
    TYPE, bits = "Q8_0", 8
    LAYOUT = (("scale", Half()), ("codes", Signed()))
