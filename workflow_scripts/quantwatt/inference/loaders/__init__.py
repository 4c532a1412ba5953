"""Loaders of checkpoints that others have quantized: each a module and a schema of the same name.

A loader that reads translates a file into quantwatt's own layers and offers

FILES                              patterns of the files that it reads below a folder
read(source, denoiser, config)     Foreign: the layers, in the formats that they have, and all other tensors

One whose schema says "x-live" lets other code compute, and offers instead

FILES                              as above
load(source, pipeline, device)     the pipeline to draw with

Only safetensors, GGUF and JSON files are read: nothing is unpickled, and no code of a repository is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json

if TYPE_CHECKING:
    import torch

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CONFIGURATIONS = ("quantize_config.json", "config.json")  # where `quantization_config` stands, or is the whole file


@dataclass(frozen=True)
class Source:
    """Where a checkpoint of others is: folder, the names of its files, and the loader's completed entry."""

    folder: Path
    files: tuple[str, ...]
    settings: Mapping[str, Any]

    def ending(self, suffix: str) -> list[Path]:
        """The paths of the files with a suffix."""
        return [self.folder / name for name in self.files if name.endswith(suffix)]

    def configuration(self, method: str) -> dict[str, Any]:
        """The `quantization_config` of a checkpoint, whose `quant_method` must be as said.

        Raises:
            DataError: there is none, or it is another library's.
        """
        for name in CONFIGURATIONS:
            if name in self.files:
                content = read_json(self.folder / name)
                found = content.get("quantization_config", content if name == CONFIGURATIONS[0] else None)
                if isinstance(found, dict):
                    kind = found.get("quant_method", method)
                    if kind != method:
                        raise DataError(f"{self.folder / name}: quant_method: it is {kind}'s, and not {method}'s.")
                    return found
        raise DataError(f"{self.folder}: no quantization_config in {' or '.join(CONFIGURATIONS)}.")


@dataclass(frozen=True)
class Layer:
    """A quantized layer: completed `weights` and `activations` of a method, and its tensors as in checkpoints."""

    weights: dict[str, Any]
    state: "dict[str, torch.Tensor]"
    activations: dict[str, Any] | None = None


@dataclass
class Foreign:
    """What a file holds: {layer: Layer}, and {name: tensor} of the rest, by the denoiser's names."""

    layers: dict[str, Layer] = field(default_factory=dict)
    rest: "dict[str, torch.Tensor]" = field(default_factory=dict)


def tensors(source: Source) -> "dict[str, torch.Tensor]":
    """All tensors of a source's safetensors files.

    Raises:
        DataError: there is none, a file is damaged, or two files hold the same tensor.
    """
    from safetensors.torch import load_file

    from quantwatt.artifacts.manifest import check_tensors

    paths, found = source.ending(".safetensors"), {}
    if not paths:
        raise DataError(f"{source.folder}: holds no safetensors file.")
    for path in paths:
        check_tensors(path, "fetch the checkpoint again.")
        held = load_file(path)
        if twice := sorted(found.keys() & held.keys()):
            raise DataError(f"{path}: holds {twice[0]}, as another file of the checkpoint does.")
        found |= held
    return found


def named(held: "Mapping[str, torch.Tensor]", ending: str) -> list[str]:
    """Names of the layers that have a tensor with an ending, sorted."""
    return sorted(name.removesuffix(ending) for name in held if name.endswith(ending))
