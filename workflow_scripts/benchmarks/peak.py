"""How many operations a second a device does at best in each type: the product of two large square matrices, alone."""

import time

import torch

from quantwatt.measuring import instruments, protocol

SIZES = (256, 512, 1024, 2048, 4096, 8192)
ENOUGH_S = 0.2  # of a product: larger ones are not tried
REPEATS = 5


def rates(device, sizes=SIZES, clock=time.perf_counter):
    """{type: 10^9 operations a second}, of float32, bfloat16 and int8; the quickest product and size count.

    The int8 product of the CPU may saturate its sums, and does on one without VNNI: what an exact kernel is held
    against is the hardware's rate.
    """
    synchronize, found = instruments.synchronize_of(device), {}
    for kind, product in _products(device):
        for size in sizes:
            try:
                run = product(size)
                run()
                seconds = protocol.measure_latency(run, 0.0, REPEATS, synchronize, clock).min()
            except RuntimeError:  # not on this device
                break
            found[kind] = max(found.get(kind, 0.0), 2 * size**3 / seconds / 1e9)
            if seconds > ENOUGH_S:
                break
    return found


def _products(device):
    """(type, function of a size that returns the product to be run)."""

    def of_floats(dtype):
        def product(size):
            left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
            return lambda: torch.mm(left, right.T)  # as linear layers have it

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
