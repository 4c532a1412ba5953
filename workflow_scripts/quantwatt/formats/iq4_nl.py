"""iq4_nl: a codebook of 16 uneven steps and a scale for each 32 inputs, 4.5 bits a weight."""

from dataclasses import dataclass

import torch

from quantwatt.formats.gguf.layout import Bits, Half
from quantwatt.formats.gguf.simple import CodebookFormat


@dataclass(frozen=True)
class Format(CodebookFormat):
    TYPE, bits = "IQ4_NL", 4
    LAYOUT = (("scale", Half()), ("codes", Bits(4)))
    codebook = torch.tensor(
        [-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    )  # kvalues_iq4nl
