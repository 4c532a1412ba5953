"""The peak operations per second of a device in each dtype, measured by the product of two large square matrices."""

import time

import torch

from quantwatt.measuring import instruments, protocol

SIZES = (256, 512, 1024, 2048, 4096, 8192)
ENOUGH_S = 0.2  # seconds of a product; larger products are not tried
REPEATS = 5


def rates(device, sizes=SIZES, clock=time.perf_counter):
    """{dtype: 10^9 operations per second} for float32, bfloat16 and int8: the fastest product over all sizes.

    The CPU's int8 product may saturate its sums, and does so on a CPU without VNNI. That does not matter here: exact
    kernels are compared with the rate of the hardware.
    """
    synchronize, peaks = instruments.synchronize_of(device), {}
    for kind, product in _products(device):
        for size in sizes:
            try:
                run = product(size)
                run()
                seconds = protocol.measure_latency(run, 0.0, REPEATS, synchronize, clock).min()
            except RuntimeError:  # the device does not support this product
                break
            peaks[kind] = max(peaks.get(kind, 0.0), 2 * size**3 / seconds / 1e9)
            if seconds > ENOUGH_S:
                break
    return peaks


def _products(device):
    """Yield (dtype, function of a size that returns a function computing the product)."""

    def of_floats(dtype):
        def product(size):
            left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
            return lambda: torch.mm(left, right.T)  # linear layers transpose the weight

        return product

    def of_integers(size):
        left, right = (torch.ones(size, size, device=device, dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(left, right.T)

    def of_onednn(size):
        codes = torch.ones(size, size, dtype=torch.uint8)
        packed = torch.ops.onednn.qlinear_prepack(torch.ones(size, size, dtype=torch.int8), None)
        scale, zero = torch.ones(size), torch.zeros(size, dtype=torch.int)
        grid = (1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")
        return lambda: torch.ops.onednn.qlinear_pointwise(codes, *grid)

    yield "float32", of_floats(torch.float32)
    yield "bfloat16", of_floats(torch.bfloat16)
    yield "int8", of_integers
    if device == "cpu":
        yield "int8", of_onednn
