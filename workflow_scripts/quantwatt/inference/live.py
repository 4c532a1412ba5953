"""Pipelines that other code quantizes at load: what they store, and whether they compute in it.

What a library's or a user's layers compute cannot be read off them. What can be counted is what they hold: layers that
hold as many bits as before are simulated, as they read no fewer bytes. Others count as real, unless the entry says
otherwise (`real`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from quantwatt import registry
from quantwatt.inference.loaders import Source

SAVED = 0.95  # share of the unquantized bytes below which a denoiser counts as stored in fewer bits


def load(source: Source, family: Any, settings: dict[str, Any], location: str | Path, device: str) -> Any:
    """The pipeline that a live loader makes of the model's unquantized one, on the CPU.

    Raises:
        DataError, Unsupported: as the loader's `load`.
    """
    pipeline = family.load(settings, location)
    return registry.load("loaders", source.settings["loader"]).load(source, pipeline, device)


def describe(source: Source, denoiser: torch.nn.Module, unquantized_bytes: int, dtype_bits: int) -> dict[str, Any]:
    """Fields of a checkpoint's manifest: bytes, bits a weight, and how it computes.

    Args:
        unquantized_bytes: of the model's denoiser in its dtype, of `dtype_bits` bits.
    """
    size = sum(part.numel() * part.element_size() for part in stored(denoiser))
    share, real = size / unquantized_bytes, source.settings.get("real")
    word = source.settings.get("function", source.settings["loader"])
    if real is None:
        real = share < SAVED
    reason = None if real else f"its layers hold {share:.0%} of the unquantized bytes, by {word}"
    return {
        "size_bytes": size,
        "weight_bits": round(share * dtype_bits, 4),
        "activation_bits": None,
        "computes": {"compute": "real" if real else "simulated", "kernel": word if real else None, "reason": reason},
    }


def stored(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain tensors of a module's parameters and buffers, each storage once; those inside subclasses, too."""
    seen = set()
    for tensor in [*module.parameters(), *module.buffers()]:
        for plain in _inside(tensor):
            key = (plain.data_ptr(), plain.numel()) if plain.numel() else None
            if key not in seen:
                seen.add(key)
                yield plain


def _inside(tensor):
    if not hasattr(tensor, "__tensor_flatten__"):
        quantized = [getattr(tensor, name, None) for name in ("SCB", "CB")]  # bitsandbytes keeps them beside
        yield tensor
        yield from (part for part in quantized[:1] if isinstance(part, torch.Tensor))
        if state := getattr(tensor, "quant_state", None):
            yield state.absmax
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inside(getattr(tensor, name))
