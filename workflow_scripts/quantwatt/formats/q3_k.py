"""q3_k: 3 bits and a scale of 6 bits for each 16 inputs, 3.4375 bits a weight."""

from dataclasses import dataclass

from quantwatt.formats.gguf import compiled_search
from quantwatt.formats.gguf.k_quants import SymmetricFormat
from quantwatt.formats.gguf.layout import Bits, Half


@dataclass(frozen=True)
class Format(SymmetricFormat):
    TYPE, bits = "Q3_K", 3
    EXTREME = -32
    LAYOUT = (
        ("codes", Bits(1, shift=2)),
        ("codes", Bits(2, parts=2)),
        ("scales", Bits(4)),
        ("scales", Bits(2, shift=4)),
        ("scale", Half()),
    )

    def _search_groups(self, groups):
        return compiled_search.coordinate(groups, self.middle)
