"""The searches of search.py in C (search.c), with the same bits; on a GPU or without a compiler search.py's own."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from quantwatt import compiled
from quantwatt.compiled import address
from quantwatt.formats.gguf import search

FLAGS = (*compiled.FLAGS, "-ffp-contract=off")  # search.py rounds every product
ARGUMENTS = {
    "affine": "ppqq" + "fpii" + "pppi",
    "symmetric": "pqq" + "fpi" + "ppi",
    "coordinate": "pqq" + "f" + "ppi",
    "of_codebook": "pqq" + "fpipi" + "pi",
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None where they cannot be compiled."""
    return compiled.library("ggml-search", Path(__file__).parent, ARGUMENTS, FLAGS)


def _takes(values):
    return values.device.type == "cpu" and values.dtype == torch.float32 and library() is not None


def _run(name, *arguments):
    getattr(library(), name)(*arguments, torch.get_num_threads())


def _tenths(start: float, numbers: list[int]) -> torch.Tensor:
    """Return start + 0.1 i of whole numbers i, each sum rounded once as in ggml."""
    return torch.from_numpy(np.array([np.float32(start) + np.float32(0.1) * np.float32(i) for i in numbers]))


def affine(
    values: torch.Tensor,
    weights: torch.Tensor,
    highest: int,
    first: float,
    steps: int,
    absolute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See search.affine."""
    if not _takes(values):
        return search.affine(values, weights, highest, first, steps, absolute)
    values, weights = values.contiguous(), weights.contiguous()
    divisions = torch.tensor([
        (np.float32(first) + np.float32(0.1) * np.float32(i) + np.float32(highest)).item() for i in range(steps + 1)
    ])  # fmt: skip
    scale, low, codes = torch.empty(len(values)), torch.empty(len(values)), torch.empty_like(values)
    _run("affine", address(values), address(weights), *values.shape, highest, address(divisions), len(divisions),
         absolute, address(scale), address(low), address(codes))  # fmt: skip
    return scale, low, codes


def symmetric(values: torch.Tensor, middle: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See search.symmetric."""
    if not _takes(values):
        return search.symmetric(values, middle)
    values, divisions = values.contiguous(), -_tenths(middle, search.AROUND)
    scale, codes = torch.empty(len(values)), torch.empty_like(values)
    _run("symmetric", address(values), *values.shape, middle, address(divisions), len(divisions), address(scale),
         address(codes))  # fmt: skip
    return scale, codes


def coordinate(values: torch.Tensor, middle: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See search.coordinate."""
    if not _takes(values):
        return search.coordinate(values, middle)
    values, scale = values.contiguous(), torch.empty(len(values))
    codes = torch.empty_like(values)
    _run("coordinate", address(values), *values.shape, middle, address(scale), address(codes))
    return scale, codes


def of_codebook(
    values: torch.Tensor, end: float, levels: torch.Tensor, nearest: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """See search.of_codebook.

    Args:
        levels: [2 * reach] float32, what `nearest` returns for places from -reach / 2 on, in steps of 1/2.
    """
    if not _takes(values):
        return search.of_codebook(values, end, nearest)
    values, scale = values.contiguous(), torch.empty(len(values))
    divisions = torch.tensor([0.0, *(i + end for i in search.SHIFTS)])
    _run("of_codebook", address(values), *values.shape, end, address(levels), len(levels) // 2, address(divisions),
         len(divisions), address(scale))  # fmt: skip
    return scale
