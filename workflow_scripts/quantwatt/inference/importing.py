"""Translate a checkpoint that others have quantized into one of quantwatt, layer by layer, held against the model.

The values are kept: codes and scales are stored as the formats of the same grids store them. Each layer is held against
the unquantized one, so that a checkpoint of another model, or one in another order, is found here and not in an image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quantwatt import registry
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.formats import convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format, stored_bits
from quantwatt.inference.loaders import Foreign, Source

ANOTHER = 1.0  # relative error of a weight that has nothing to do with the model's; unrelated ones have 1.4

Checkpoint = tuple[torch.nn.Module, dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]


def import_checkpoint(source: Source, family: Any, settings: Mapping[str, Any], location: str | Path) -> Checkpoint:
    """Read a checkpoint of others.

    Args:
        source: of a loader that reads.
        family: the model's; settings: the model's, with the method's dtype; location: the model's folder.
    Returns:
        (denoiser with the checkpoint's unquantized tensors, states, reports) as `checkpoint_files.save` takes them.
    Raises:
        DataError: the file is damaged, is not this denoiser's, or holds what quantwatt cannot store.
    """
    loader = registry.load("loaders", source.settings["loader"])
    denoiser, original = family.meta_denoiser(location), family.load_denoiser(settings, location)
    foreign = loader.read(source, denoiser, dict(getattr(denoiser, "config", None) or {}))
    if not foreign.layers:
        raise DataError(f"{source.folder}: holds no quantized layer; a model that is not quantized is a model's entry.")
    states, reports = {}, {}
    for name, layer in foreign.layers.items():
        states[name] = layer.state
        reports[name] = _report(name, layer, _module(original, name, source), source)
    others = [name for name, report in reports.items() if not (report["relative_error"] or 0) < ANOTHER]
    if 2 * len(others) > len(reports):
        raise DataError(
            f"{source.folder}: {len(others)} of {len(reports)} layers have nothing in common with the model's "
            f"({others[0]} is one): it is a checkpoint of another model."
        )
    _fill(denoiser, foreign, original.state_dict(), family.transposed(location), source)
    return denoiser.eval(), states, reports


def _module(original, name, source):
    try:
        module = original.get_submodule(name)
    except AttributeError:
        module = None
    if not hasattr(module, "weight"):
        raise DataError(f"{source.folder}: the model has no layer {name}.")
    return module


def _report(name, layer, module, source):
    """What a manifest says about a layer: its formats, and the error against the unquantized weight."""
    shape, library = convolution.describe(module), library_of(layer.weights)
    weight = module.weight.detach().float().flatten(1)
    try:
        if library:
            values = library.dequantize(layer.state, shape)
            bits = sum(8 * part.numel() * part.element_size() for part in layer.state.values()) / weight.numel()
            held = {"library": library.LIBRARY}
        else:
            weight_format = load_format(layer.weights)
            quantized = QuantizedWeight.from_state(layer.state, weight_format, shape["in_features"])
            values = quantized.dequantize(weight_format)
            bits = stored_bits(*weight.shape, weight_format)
            held = {"groups_per_row": quantized.scale.shape[1]}
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{source.folder}: the tensors of {name} do not fit its {list(weight.shape)} ({error})."
        ) from error
    if values.shape != weight.shape:
        raise DataError(f"{source.folder}: {name} is {list(values.shape)}, and the model needs {list(weight.shape)}.")
    if not values.isfinite().all():
        raise DataError(f"{source.folder}: {name} holds NaN or infinity.")
    own = 8 * module.weight.element_size()
    activations = layer.activations and layer.activations["bits"]
    return {
        "weights": layer.weights,
        "activations": layer.activations,
        **shape,
        **held,
        "parts": sorted(layer.state),
        "weight_bits": bits,
        "activation_bits": (library.bits[1] if library else activations) or own,
        "error_before": None,
        "relative_error": manifest.finite((values - weight).norm() / weight.norm()) if weight.any() else 0.0,
        "error_of": "weights",
        "damping": None,
        "fallback": None,
        "seconds": None,
        "energy_j": None,
    }


def _fill(denoiser, foreign: Foreign, original, transposed, source):
    """Put the unquantized tensors into the denoiser, in the model's dtype; biases that a file lacks are the model's.

    Args:
        original: the state dict of the unquantized denoiser; transposed: layers that their library stores as [in, out].
    """
    rest = {}
    for name, tensor in foreign.rest.items():
        if name not in original:
            raise DataError(f"{source.folder}: the model has no tensor {name}.")
        tensor = tensor.T if name.removesuffix(".weight") in transposed and name.endswith(".weight") else tensor
        if tensor.shape != original[name].shape:
            raise DataError(f"{source.folder}: {name} is {list(tensor.shape)}, not {list(original[name].shape)}.")
        rest[name] = tensor.to(original[name].dtype).contiguous()
    needed = original.keys() - {f"{name}.weight" for name in foreign.layers}
    tied = {name for name in needed if any(original[name].data_ptr() == original[o].data_ptr() for o in rest)}
    if missing := sorted(needed - rest.keys() - tied):
        raise DataError(f"{source.folder}: lacks {missing[0]}, and {len(missing) - 1} more, which the model needs.")
    rest |= {name: original[name] for name in tied - rest.keys()}
    denoiser.load_state_dict(rest, strict=False, assign=True)
