"""Read GGUF files of others: the header, within limits, and one tensor at a time.

The header is little-endian: "GGUF", version, numbers of tensors and of keys, the keys with their values, and of each
tensor its name, sizes (fastest first), type and offset; the tensors follow, aligned
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Nothing that a header claims is believed: each length is
compared with what is left of the file before anything of this length is read, and there are limits to numbers.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts.errors import DataError

TYPES = {  # {number: (name of gguf.GGMLQuantizationType, values of a block, its bytes)}
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
# Limits: FLUX has 780 tensors; the longest values are a language model's vocabulary.
MOST_TENSORS, MOST_KEYS, MOST_VALUES = 50_000, 10_000, 2**21
LONGEST_NAME, LONGEST_STRING, HEADER_BYTES = 1024, 2**20, 2**27
LEAST_ALIGNMENT, ALIGNMENT, MOST_ALIGNMENT = 8, 32, 2**16
DIMENSIONS = 4


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type, its shape as PyTorch has it, and where its bytes are."""

    kind: str  # a name of TYPES
    shape: tuple[int, ...]
    start: int
    size: int


class GGUFFile:
    """The header of a file.

    metadata: {key: value}; of arrays only the length, as nothing here reads them.
    tensors: {name: Entry}.

    Raises:
        DataError: it is no GGUF file, is truncated, claims more than it holds, or has types that are not known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self.metadata, self.tensors = _Header(self.path, content).read()
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError(f"{self.path}: cannot be read as a GGUF file ({error}).") from error

    def read(self, name: str) -> np.ndarray:
        """A tensor's bytes: uint8 [rows, bytes of a row]; a row is its last dimension."""
        entry = self.tensors[name]
        values = np.fromfile(self.path, np.uint8, entry.size, offset=entry.start)
        return values.reshape(-1, _row_bytes(entry))


def _row_bytes(entry):
    _, width, size = next(own for own in TYPES.values() if own[0] == entry.kind)
    return entry.shape[-1] // width * size


class _Header:
    """A cursor in a file's header; every step is checked against the end."""

    def __init__(self, path, content):
        self.path, self.content, self.at = path, content, 0

    def read(self):
        if self.take(4) != b"GGUF":
            self.refuse("does not begin as one")
        version = self.number("I")
        if version not in VERSIONS:
            self.refuse(f"has version {version}, and versions {' and '.join(map(str, VERSIONS))} are read")
        tensors, keys = self.number("Q"), self.number("Q")
        for found, most, what in ((tensors, MOST_TENSORS, "tensors"), (keys, MOST_KEYS, "keys")):
            if found > most:
                self.refuse(f"claims {found} {what}; more than {most} are not read")
        metadata = self.distinct((self.text(LONGEST_STRING), self.value(self.number("I"))) for _ in range(keys))
        claims = self.distinct((self.text(LONGEST_NAME), self.claim()) for _ in range(tensors))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not self.is_alignment(alignment):
            self.refuse(f"has the alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        return metadata, self.placed(claims, start, alignment)

    def placed(self, claims, start, alignment):
        """{name: Entry}; tensors lie in the file, aligned, and do not overlap."""
        entries, end = {}, 0
        for name, (kind, shape, offset, size) in sorted(claims.items(), key=lambda claim: claim[1][2]):
            if offset % alignment or offset < end or start + offset + size > len(self.content):
                self.refuse(f"places the tensor '{name}' outside of the file or over another one")
            end = offset + size
            entries[name] = Entry(kind, shape, start + offset, size)
        return entries

    def claim(self):
        """(type, shape, offset, bytes) of a tensor."""
        dimensions = self.number("I")
        if not 1 <= dimensions <= DIMENSIONS:
            self.refuse(f"has a tensor of {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        number, offset = self.number("I"), self.number("Q")
        if number not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            self.refuse(f"has a tensor of ggml's type {number}, and known are {known}")
        kind, width, size = TYPES[number]
        count = 1
        for length in shape:
            count *= length
        if not 0 < count <= 8 * len(self.content) or shape[-1] % width:
            self.refuse(f"has a tensor of {'x'.join(map(str, shape))} values, which is not possible in {kind}")
        return kind, shape, offset, count // width * size

    def value(self, kind, inside=False):
        """A value of a type; the length of an array."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text(LONGEST_STRING)
        if kind != ARRAY or inside:
            self.refuse(f"has a value of type {kind}")
        of, count = self.number("I"), self.number("Q")
        if count > MOST_VALUES:
            self.refuse(f"claims {count} values in an array; more than {MOST_VALUES} are not read")
        if of in SCALARS:
            self.take(count * struct.calcsize(f"<{SCALARS[of]}"))
        else:
            for _ in range(count):
                self.value(of, inside=True)
        return count

    def text(self, most):
        length = self.number("Q")
        if length > most:
            self.refuse(f"has a text of {length} bytes; more than {most} are not read")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.refuse("has a text that is not UTF-8")

    def number(self, kind):
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def take(self, count):
        if self.at + count > min(len(self.content), HEADER_BYTES):
            self.refuse("ends within its header, or has a longer one than is read")
        self.at += count
        return self.content[self.at - count : self.at]

    def distinct(self, pairs):
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                self.refuse(f"names '{name[:LONGEST_NAME]}' twice")
            found[name] = value
        return found

    @staticmethod
    def is_alignment(value):
        return LEAST_ALIGNMENT <= value <= MOST_ALIGNMENT and value & value - 1 == 0

    def refuse(self, reason):
        raise DataError(f"{self.path}: not a GGUF file that can be read: it {reason}.")
