"""Which of two products of a layer is faster on this machine, for a number of tokens: measured once, then remembered.

The file `products-….json` of the cache folder holds the seconds of each shape and number of tokens. Its name has the
CPU's abilities, the number of threads and the sources of the C functions, so that a change of these measures anew.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.inference import native

TURNS, TURN_S = 5, 0.002
MARGIN = 1.1  # the second product must be faster by this factor: it takes the layer's memory once more
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)  # numbers of tokens that are measured; others count as the nearest ratio


def counted_as(tokens: int) -> int:
    """The number of TOKENS whose measurement stands for `tokens`."""
    return min(TOKENS, key=lambda count: max(count, tokens) / max(1, min(count, tokens)))


def seconds_of(runs: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter):
    """{name: median seconds of a run}, of runs that take turns."""
    counts, found = {}, {name: [] for name in runs}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        counts[name] = max(1, round(TURN_S / max(1e-7, clock() - start)))
    for _ in range(TURNS):
        for name, run in runs.items():
            start = clock()
            for _ in range(counts[name]):
                run()
            found[name].append((clock() - start) / counts[name])
    return {name: sorted(values)[TURNS // 2] for name, values in found.items()}


@functools.cache
def _file(threads: int) -> Path:
    return native.cache_folder() / f"products-{native.key()}-{threads}.json"


def remembered(threads: int) -> dict[str, dict[str, float]]:
    """{"columns x rows x tokens": {product: seconds}} of what was measured with so many threads."""
    try:
        return json.loads(_file(threads).read_text())
    except (OSError, ValueError):  # none yet, or half of one
        return {}


@functools.cache
def is_faster(columns: int, rows: int, tokens: int, threads: int) -> bool:
    """Whether oneDNN's product is faster than C's for a layer of this shape; `tokens` is one of TOKENS."""
    name, known = f"{columns} x {rows} x {tokens}", remembered(threads)
    if name not in known:
        from quantwatt.inference.kernels import int8_in_c

        seconds = seconds_of(int8_in_c.products(columns, rows, tokens))
        _remember(threads, {name: seconds})
        known = {name: seconds}
    return known[name]["C"] > MARGIN * known[name]["oneDNN"]


def _remember(threads, found):
    path = _file(threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_json(path, {**remembered(threads), **found})  # what another process loses is measured again
    except (OSError, DataError):  # a folder that cannot be written: each process measures
        return
