"""Rotate a layer's inputs by Walsh-Hadamard transforms: on the CPU in one pass of C (native/hadamard.c).

Without a compiler, for float16, on another device, or where a gradient is wanted, PyTorch's functions are used, with a
pass for each of log2(block) steps. Inputs that several layers rotate alike, such as those of the projections to
queries, keys and values, are rotated once.
"""

import functools
import hashlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from quantwatt.formats import rotation
from quantwatt.inference.native import address, library

PATHS = ("plain C", "AVX2", "AVX-512")  # in the order of native/hadamard.c, the fastest last
TYPES_IN_C = (torch.float32, torch.bfloat16)
PER_THREAD = 1 << 17  # values that take one thread about as long as waking up another one
KEPT_BYTES = 1 << 26  # rotated inputs are kept up to this size


@functools.cache
def paths() -> tuple[int, ...]:
    """The paths that this CPU runs, the fastest last; empty where there is no compiler."""
    compiled = library()
    bits = 0 if compiled is None else compiled.hadamard_paths()
    return tuple(path for path in range(len(PATHS)) if bits >> path & 1)


def rotate(
    inputs: torch.Tensor,
    block: int,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    path: int | None = None,
) -> torch.Tensor:
    """Return H (inputs * before) * after as `quantwatt.formats.rotation.rotated` does.

    Args:
        inputs: [..., columns].
        block: a power of two that divides columns.
        before, after: [columns] float32 on the inputs' device, or None for ones.
        path: one of `paths()`; the fastest by default.
    """
    if torch.compiler.is_compiling():  # one operator: a compiler would do each step again for all that follow it
        return torch.ops.quantwatt.hadamard(inputs, block, before, after)
    wants_gradient = torch.is_grad_enabled() and inputs.requires_grad
    if wants_gradient or not inputs.is_cpu or inputs.dtype not in TYPES_IN_C or not paths():
        return rotation.rotated(inputs, block, before, after)
    flat, columns = inputs.contiguous(), inputs.shape[-1]
    before, after = (None if factor is None else factor.float().contiguous() for factor in (before, after))
    outputs = torch.empty_like(flat)
    threads = min(torch.get_num_threads(), 1 + flat.numel() // PER_THREAD)
    library().hadamard(  # ty: ignore[missing-union-attribute]  (there are paths)
        *(address(flat), flat.dtype is torch.bfloat16, flat.numel() // max(columns, 1), columns, block, block**-0.5),
        *(address(before), address(after), address(outputs), paths()[-1] if path is None else path, threads),
    )
    return outputs


class _Kept(threading.local):
    """The inputs that this thread rotated last, as long as they live, and what they became."""

    inputs: Callable[[], torch.Tensor | None]
    outputs: torch.Tensor | None

    def __init__(self) -> None:
        self.forget()

    def forget(self, _: object = None) -> None:
        self.inputs, self.version, self.name, self.outputs = lambda: None, -1, "", None


_KEPT = _Kept()


def attach(layer: Any) -> None:
    """Let a QuantizedLinear whose inputs are rotated do that here, once for all layers that rotate them alike."""
    if layer.block is not None:
        factors = (layer.input_factor, layer.rotated_factor)
        digest = hashlib.sha256(str(layer.block).encode())
        for factor in factors:
            digest.update(b"none" if factor is None else factor.cpu().numpy().tobytes())
        layer.rotate = functools.partial(rotate_once, digest.hexdigest())


def rotate_once(
    name: str, inputs: torch.Tensor, block: int, before: torch.Tensor | None, after: torch.Tensor | None
) -> torch.Tensor:
    """Return `rotate`'s result, which callers must not change: the same tensor for the same inputs and name.

    Args:
        name: equal for equal block, before and after.
    """
    if torch.compiler.is_compiling() or inputs.is_inference() or (torch.is_grad_enabled() and inputs.requires_grad):
        return rotate(inputs, block, before, after)
    kept = _KEPT
    if kept.outputs is None or kept.inputs() is not inputs or kept.name != name or kept.version != inputs._version:
        kept.forget()
        outputs = rotate(inputs, block, before, after)
        if outputs.nbytes > KEPT_BYTES:
            return outputs
        kept.inputs, kept.version = weakref.ref(inputs, kept.forget), inputs._version
        kept.name, kept.outputs = name, outputs
    return kept.outputs


OPERATORS = torch.library.Library("quantwatt", "FRAGMENT")
OPERATORS.define("hadamard(Tensor inputs, int block, Tensor? before, Tensor? after) -> Tensor")


@torch.library.impl(OPERATORS, "hadamard", "CompositeExplicitAutograd")
def _hadamard(inputs, block, before, after):
    return rotate(inputs, block, before, after)


@torch.library.register_fake("quantwatt::hadamard", lib=OPERATORS)
def _fake_hadamard(inputs, block, before, after):
    return inputs.new_empty(inputs.shape)
