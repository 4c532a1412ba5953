"""Headers of GGUF and safetensors files, as they are and with any bytes changed: read, or refused in one sentence."""

import json
import random
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.gguf_file import GGUFFile
from quantwatt.artifacts.manifest import check_tensors

Q4_0, F32 = 2, 0


def text(words):
    return struct.pack("<Q", len(words)) + words.encode()


def gguf(tensors, keys=(), data=b"", version=3, count=None):
    """A file of (name, shape with the fastest first, type, offset) and (key, type, bytes of the value)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if count is None else count, len(keys))
    for key, kind, value in keys:
        head += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)
    return head + b"\0" * (-len(head) % 32) + data


BLOCKS = bytes(range(18)) * 4  # four blocks of Q4_0
KEYS = [("general.architecture", 8, text("sd3")), ("a.list", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
        ("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")), ("n", 4, struct.pack("<I", 7))]  # fmt: skip
GOOD = gguf(
    [("w", (64, 2), Q4_0, 0), ("b", (3,), F32, 96)], KEYS, BLOCKS.ljust(96, b"\0") + struct.pack("<3f", 1, 2, 3)
)


def test_a_file_is_read(tmp_path):
    (tmp_path / "a.gguf").write_bytes(GOOD)
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.metadata == {"general.architecture": "sd3", "a.list": 3, "words": 2, "n": 7}
    assert file.tensors["w"].shape == (2, 64) and file.read("w").tobytes() == BLOCKS and file.read("w").shape == (2, 36)
    assert file.read("b").view(np.float32).tolist() == [[1, 2, 3]]


HUGE = 2**63
BAD = {
    "begin as one": b"GGML" + GOOD[4:],
    "version 1": gguf([], version=1),
    "tensors; more than": gguf([], count=HUGE),
    "ends within its header": gguf([], count=40),
    "text of": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE),
    "values in an array": gguf([], [("k", 9, struct.pack("<IQ", 6, HUGE))]),
    "value of type 99": gguf([], [("k", 99, b"")]),
    "value of type 9": gguf([], [("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1))]),
    "alignment": gguf([], [("general.alignment", 4, struct.pack("<I", 24))]),
    "twice": gguf([("a", (1,), F32, 0), ("a", (1,), F32, 32)], data=bytes(64)),
    "another one": gguf([("a", (16,), F32, 0), ("b", (1,), F32, 32)], data=bytes(64)),
    "outside of the file": gguf([("a", (16,), F32, 32)], data=bytes(64)),
    "ggml's type 16": gguf([("a", (256,), 16, 0)], data=bytes(64)),
    "which is not possible": gguf([("a", (33,), Q4_0, 0)], data=bytes(64)),
    "of 5 dimensions": gguf([("a", (1,) * 5, F32, 0)], data=bytes(64)),
    "not UTF-8": gguf([], [("k", 8, struct.pack("<Q", 1) + b"\xff")]),
    "cannot be read": b"",
}


@pytest.mark.parametrize("words", BAD)
def test_what_a_header_claims_is_not_believed(tmp_path, words):
    (tmp_path / "a.gguf").write_bytes(BAD[words])
    with pytest.raises(DataError, match=words) as caught:
        GGUFFile(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


def mutated(content, header, generator):
    """A copy with some bytes, or the end, changed; mostly inside the header."""
    content = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 8))):
        at = generator.randrange(header if generator.random() < 0.9 else len(content))
        content[at : at + generator.choice((1, 4, 8))] = generator.choice(
            (bytes([generator.randrange(256)]), b"\xff" * 8, bytes(8), struct.pack("<Q", generator.randrange(2**34)))
        )
    return bytes(content[: generator.randrange(len(content))] if generator.random() < 0.2 else content)


def read_gguf(path):
    file = GGUFFile(path)
    for name in file.tensors:
        file.read(name)


def read_safetensors(path):
    check_tensors(path, "fetch it again.")


def fuzz(tmp_path, content, header, read, rounds):
    generator, path, refusals = random.Random(0), tmp_path / "fuzzed", []
    for _ in range(rounds):
        path.write_bytes(mutated(content, header, generator))
        try:
            read(path)
        except DataError as error:
            refusals.append(str(error))
    assert rounds / 3 < len(refusals) < rounds and not any("\n" in refusal for refusal in refusals)


def safetensors(tmp_path):
    save_file({"w": torch.zeros(4, 8), "b": torch.zeros(3, dtype=torch.int8)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    return content, 8 + struct.unpack("<Q", content[:8])[0]


@pytest.mark.parametrize("rounds", [400, pytest.param(40_000, marks=pytest.mark.slow)])
def test_any_bytes_of_a_gguf_file_are_read_or_refused(tmp_path, rounds):
    fuzz(tmp_path, GOOD, len(GOOD) - 108, read_gguf, rounds)


@pytest.mark.parametrize("rounds", [400, pytest.param(40_000, marks=pytest.mark.slow)])
def test_any_bytes_of_a_safetensors_file_are_read_or_refused(tmp_path, rounds):
    fuzz(tmp_path, *safetensors(tmp_path), read_safetensors, rounds)


@pytest.mark.parametrize("length", [0, 7, 2**40, 2**63])
def test_a_length_of_a_safetensors_header_is_not_believed(tmp_path, length):
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + json.dumps({}).encode())
    with pytest.raises(DataError, match="not a safetensors file"):
        read_safetensors(tmp_path / "a")
