"""Record the blocks that ggml makes of weights: tests/peers/ggml.safetensors, read by tests/unit/test_gguf_formats.py.

    python -m venv VENV && VENV/bin/pip install libggml-python==0.20.2.post1 torch safetensors numpy
    VENV/bin/python tests/peers/record_ggml.py

ggml's library is called by ctypes, without an importance matrix, as `llama-quantize` does for pure types.
"""

import ctypes
import importlib.metadata
from pathlib import Path

import torch
from safetensors.torch import save_file

TYPES = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13,
         "q6_k": 14, "iq4_nl": 20}  # fmt: skip
ROWS, COLUMNS = 24, 512


def library():
    distribution = importlib.metadata.distribution("libggml-python")
    [path] = [file.locate() for file in distribution.files if file.name == "libggml-base.so"]
    base = ctypes.CDLL(str(path))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_row_size.restype = ctypes.c_size_t
    base.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    return base


def weights():
    """Rows of several kinds: normal of three sizes, heavy tails, shifted, sparse, coarse, constant and zero."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    weight[4:8] *= 0.02
    weight[8:12] /= torch.randn(3, 4, COLUMNS, generator=generator).square().mean(dim=0).sqrt()
    weight[12:14] += 3
    weight[14:16] -= 0.5
    weight[16:18] *= torch.rand(2, COLUMNS, generator=generator) < 0.1
    weight[18:20] = (weight[18:20] * 2).round() / 2  # ties
    weight[20, :256], weight[20, 256:], weight[21] = 0.25, -0.25, 0
    weight[22, :300] = 0
    weight[23] = weight[23].abs() * 1e-2
    return weight + 0.0  # without -0.0, of which ggml takes the first as a minimum


def main():
    base, weight = library(), weights().contiguous()
    recorded = {"weight": weight}
    for name, number in TYPES.items():
        size = base.ggml_row_size(number, COLUMNS)
        blocks = torch.zeros(ROWS, size, dtype=torch.uint8)
        pointers = ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(blocks.data_ptr())
        written = base.ggml_quantize_chunk(
            number, *pointers, ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(COLUMNS), None
        )
        if written != blocks.numel():
            raise RuntimeError(f"{name}: {written} bytes instead of {blocks.numel()}")
        recorded[name] = blocks
    version = importlib.metadata.version("libggml-python")
    save_file(recorded, Path(__file__).with_name("ggml.safetensors"), {"libggml-python": version})


if __name__ == "__main__":
    main()
