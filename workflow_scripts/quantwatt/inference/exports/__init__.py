"""Export a checkpoint's model in a checkpoint format that another library reads.

The module of a checkpoint format ("form") offers

PARTS                                     the parts of a layer's state that the format can express
CONV1D                                    whether its readers accept transformers' Conv1D as a linear layer
tensors(name, layer, state, dtype)        {tensor name: tensor} of one layer, without its bias
configuration(details, skipped)           the `quantization_config`; skipped: names of linear layers left in 16 bits
file_name(denoiser)                       name of the file with the weights
finish(folder, tensors, configuration)    (tensors, metadata) for the file; may write more files, or be `plain`
save(path, tensors, metadata)             writes the file; `safetensors` for all but GGUF

`tensors` and `configuration` raise NotExpressible if the format cannot express something that the checkpoint holds:
nothing is left out silently. All the rest is written as the model's library stores it: unquantized weights, biases,
norms and embeddings keep their layout and names, and config.json only gets the quantization_config, if there is one.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt import registry
from quantwatt.artifacts import manifest, shards
from quantwatt.artifacts.errors import DataError
from quantwatt.inference.checkpoint import check_settings
from quantwatt.models.families import load_family

if TYPE_CHECKING:
    import torch

    from quantwatt.formats.quantized_weight import QuantizedWeight
    from quantwatt.formats.weight_format import WeightFormat

REASONS = {
    "rotation": "its input is rotated first",
    "input_factor": "its input is scaled first",
    "down": "it has a 16-bit low-rank branch",
    "activation_scale": "its activations have a static grid",
    "group_index": "its groups do not hold neighbouring inputs",
}


class NotExpressible(Exception):
    """The checkpoint format cannot express a layer; the message is half a sentence that says why."""


def plain(
    folder: Path, tensors: "Mapping[str, torch.Tensor]", configuration: Mapping[str, Any]
) -> "tuple[Mapping[str, torch.Tensor], dict[str, str]]":
    """Return the tensors unchanged, without metadata: the `finish` of a format that adds nothing."""
    return tensors, {}


def export(checkpoint: str | Path, form: str, output: str | Path) -> None:
    """Write a checkpoint's model in another checkpoint format, completely or not at all.

    Args:
        checkpoint: the checkpoint's folder or its manifest.json.
        form: name of a module of this package.
        output: folder to create, with the weights, config.json, and the other files of the format.
    Raises:
        DataError: the format cannot express the checkpoint, the checkpoint is damaged, or the folder cannot be written.
    """
    path = Path(checkpoint)
    path = path / "manifest.json" if path.is_dir() else path
    details = manifest.read_json(path)
    if details["status"] != "ok" or not details["layers"]:
        raise DataError(f"{path}: holds no quantized layers.")
    if details.get("schedule"):
        raise DataError(f"{path}: its formats depend on the step of a drawing, which {form} cannot express.")
    check_settings(details["layers"], path)
    manifest.verify_files(path, details["files"])
    module = registry.load("exports", form)
    family = load_family(details["model_settings"]["family"])
    location = manifest.PROJECT / details["location"]
    denoiser = family.meta_denoiser(location)
    try:
        configuration = module.configuration(details, _skipped(denoiser, details["layers"]))
    except NotExpressible as error:
        raise DataError(f"{path}: cannot be written as {form}: {error}.") from error
    tensors = _tensors(module, form, path, details, denoiser, family.transposed(location))
    with _folder(Path(output)) as folder:
        config = {"quantization_config": configuration} if configuration else {}
        manifest.write_json(folder / "config.json", {**_original_config(denoiser, location), **config})
        metadata = {"format": "pt"}
        try:
            tensors, format_metadata = module.finish(folder, tensors, configuration)
        except NotExpressible as error:
            raise DataError(f"{path}: cannot be written as {form}: {error}.") from error
        module.save(folder / module.file_name(denoiser), tensors, metadata | format_metadata)


def weight_of(layer: Mapping[str, Any], state: "Mapping[str, torch.Tensor]") -> "tuple[WeightFormat, QuantizedWeight]":
    """Return (format, QuantizedWeight) of a layer whose codes quantwatt stores itself."""
    from quantwatt.formats.quantized_weight import QuantizedWeight, load_format

    weight_format = load_format(layer["weights"])
    return weight_format, QuantizedWeight.from_state(state, weight_format, layer["in_features"])


def model_file(denoiser: "torch.nn.Module") -> str:
    """Return the file name under which the model's library looks for its weights."""
    from diffusers import ModelMixin

    return "diffusion_pytorch_model.safetensors" if isinstance(denoiser, ModelMixin) else "model.safetensors"


def _tensors(module, form, path, details, denoiser, transposed):
    """Return all tensors of the model: quantized layers in the format, all others as the model's library stores them.

    Args:
        transposed: layers whose weights the library stores as [columns, rows].
    """
    import torch

    dtype = getattr(torch, details["model_settings"]["dtype"])
    stored, tensors = shards.Shards(path.parent, details["files"]), {}
    rest = set(stored.path)
    for name, layer in details["layers"].items():
        keys = {key for key in rest if key.rpartition(".")[0] == name and key != f"{name}.bias"}
        state = {key.rpartition(".")[2]: stored.read(key) for key in keys}
        rest -= keys
        try:
            _check(module, name, layer, state, denoiser, transposed)
            tensors |= module.tensors(name, layer, state, dtype)
        except NotExpressible as error:
            raise DataError(f"{path}: layer {name} cannot be written as {form}: {error}.") from error
    transposed_weights = {f"{name}.weight" for name in transposed}
    unquantized = {name: stored.read(name) for name in sorted(rest)}
    return tensors | {name: tensor.T if name in transposed_weights else tensor for name, tensor in unquantized.items()}


def _check(module, name, layer, state, denoiser, transposed):
    """Refuse a layer that no checkpoint format, or not this one, can express."""
    import torch

    if "part_of" in layer:
        raise NotExpressible(f"it is one part of {layer['part_of']}, and the format stores only whole layers")
    if type(denoiser.get_submodule(name)) is not torch.nn.Linear:
        raise NotExpressible("it is not a linear layer of the model")
    if name in transposed and not module.CONV1D:
        raise NotExpressible("it is transformers' Conv1D, and readers of the format accept only linear layers")
    if unknown := state.keys() - module.PARTS:
        known = (reason for part, reason in REASONS.items() if part in unknown)
        raise NotExpressible(next(known, f"the format has no place for its '{min(unknown)}'"))


def _skipped(denoiser, layers):
    import torch

    linear = [name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear)]
    return [name for name in linear if name not in layers]


def _original_config(denoiser, location):
    """Return the content of the config.json that the model was loaded with; for a pipeline, the denoiser's."""
    folder = Path(location)
    if (folder / "model_index.json").exists():
        parts, kind = manifest.read_json(folder / "model_index.json"), type(denoiser).__name__
        folder /= next(name for name, part in parts.items() if isinstance(part, list) and part[1] == kind)
    return manifest.read_json(folder / "config.json")


def safetensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(metadata))
    except SafetensorError as error:  # safetensors raises it for a failed write
        raise OSError(str(error)) from error


@contextlib.contextmanager
def _folder(path):
    """Create a folder under a temporary name, and rename it to `path` when everything is written."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: exists already; name another folder or remove it.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        Path(part).replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
