"""A denoiser in one GGUF file, with the original checkpoint's names (as ComfyUI and diffusers take them) or diffusers'.

Blocks are kept as they are: they are what quantwatt's formats of the same names store. An original layer that diffusers
has as several is taken apart by rows; halves of a modulation are put into diffusers' order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.gguf_file import GGUFFile
from quantwatt.inference.loaders import Foreign, Layer, Source
from quantwatt.models import original_names
from quantwatt.models.original_names import Original

FILES = ("*.gguf",)
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PREFIX = "model.diffusion_model."  # of files that hold a whole pipeline's names


def read(source: Source, denoiser: torch.nn.Module, config: Mapping[str, Any]) -> Foreign:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: there is not one GGUF file, or its tensors are not this denoiser's.
    """
    paths = source.ending(".gguf")
    if len(paths) != 1:
        raise DataError(f"{source.folder}: holds {len(paths)} GGUF files; name one as checkpoint.file.")
    file, found, needed = GGUFFile(paths[0]), Foreign(), denoiser.state_dict()
    for name, original in _names(file, needed, config).items():
        _check_rows(file, name, original, needed)
        kind, rows = file.tensors[name].kind, _rows(file, name, original)
        for part, data in _parts(rows, original, needed):
            if kind in PLAIN:
                values = torch.from_numpy(data).view(PLAIN[kind])
                found.rest[part] = values.reshape(needed[part].shape)
            else:
                found.layers[_layer(part, denoiser, paths[0])] = Layer(
                    _weights(kind), {"codes": torch.from_numpy(data)}
                )
    return found


def _names(file, needed, config):
    """{name in the file: Original}; the file has the denoiser's own names, or the original's."""
    if needed.keys() == file.tensors.keys():
        return {name: Original((name,)) for name in needed}
    try:
        originals = original_names.originals(needed, config)
    except ValueError as error:
        raise DataError(f"{file.path}: {error}.") from error
    if not originals.keys() <= file.tensors.keys():
        originals = {name.removeprefix(PREFIX) if name.startswith(PREFIX) else PREFIX + name: original
                     for name, original in originals.items()}  # fmt: skip
    differing = sorted(originals.keys() ^ file.tensors.keys())
    if differing:
        lacks = "lacks" if differing[0] in originals else "holds"
        raise DataError(
            f"{file.path}: {lacks} {differing[0]}, and {len(differing) - 1} more differ: its tensors are not those of "
            f"a {config.get('_class_name')} of this size."
        )
    return originals


def _check_rows(file, name, original, needed):
    """Refuse a tensor whose shape is not that of the parts below one another."""
    shapes = [tuple(needed[part].shape) for part in original.parts]
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
    found = file.tensors[name].shape
    squeezed = tuple(size for size in whole if size > 1), tuple(size for size in found if size > 1)
    if squeezed[0] != squeezed[1]:
        raise DataError(f"{file.path}: {name} is {list(found)}, and the model needs {list(whole)}.")


def _rows(file, name, original):
    """The rows of an original tensor in diffusers' order: uint8 [rows, bytes of a row]."""
    data = file.read(name)
    if original.swapped:
        data = data.reshape(2, -1)[::-1].reshape(data.shape)
    return np.ascontiguousarray(data)


def _parts(data, original, needed):
    """Yield (name, bytes) of what an original tensor holds, each as large as its share of the values."""
    sizes = [needed[part].numel() for part in original.parts]
    ends = np.cumsum(sizes) * data.size // sum(sizes)
    flat = data.reshape(-1)
    for part, start, end in zip(original.parts, [0, *ends[:-1]], ends, strict=True):
        rows = needed[part].shape[0] if needed[part].dim() > 1 else 1
        yield part, np.ascontiguousarray(flat[start:end].reshape(rows, -1))


def _layer(part, denoiser, path):
    layer, _, own = part.rpartition(".")
    if own != "weight" or not isinstance(denoiser.get_submodule(layer), torch.nn.Linear):
        raise DataError(f"{path}: {part} is quantized, and is not the weight of a linear layer.")
    return layer


def _weights(kind):
    name = kind.lower()
    bits = registry.schema(f"formats/{name}")["properties"]["bits"]["const"]
    return {"format": name, "bits": bits}
