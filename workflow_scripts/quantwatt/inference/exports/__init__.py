"""A checkpoint's model in the form that another library reads.

A form's module offers

PARTS                                     what of a layer's state the form can express
CONV1D                                    whether its readers know transformers' Conv1D as a linear layer
tensors(name, layer, state, dtype)        {tensor name: tensor} of one layer, its bias aside
configuration(details, skipped)           its `quantization_config`; skipped: names of linear layers left in 16 bits
file_name(denoiser)                       of the weights
finish(folder, tensors, configuration)    (tensors, metadata) for the file; may write others beside it, or be `plain`

`tensors` and `configuration` raise NotExpressible where the form cannot say what the checkpoint holds: nothing is
left out.
What no form changes is written as the model's own library stores it: weights of layers that are not quantized, biases,
norms and embeddings in its layout and under its names, and its config.json, which gets nothing but the quantization.
"""

import contextlib
import os
import shutil
from pathlib import Path

from quantwatt import registry
from quantwatt.artifacts import manifest, shards
from quantwatt.artifacts.errors import DataError
from quantwatt.inference.checkpoint import check_settings
from quantwatt.models.families import load_family

REASONS = {
    "input_factor": "its input is scaled first",
    "down": "it has a 16-bit low-rank branch",
    "activation_scale": "its activations have a static grid",
    "group_index": "its groups are not of neighbouring inputs",
}


class NotExpressible(Exception):
    """What a form cannot express, as half a sentence."""


def plain(folder, tensors, configuration):
    """The `finish` of a form that has nothing to add: its tensors as they are, no metadata."""
    return tensors, {}


def export(checkpoint, form, output):
    """Write a checkpoint's model in another form, whole or not at all.

    Args:
        checkpoint: the checkpoint's folder or its manifest.json.
        form: name of a module of this package.
        output: folder to make: weights, config.json, and what else the form has.
    Raises:
        DataError: the form cannot express the checkpoint, the checkpoint is damaged, or the folder cannot be written.
    """
    path = Path(checkpoint)
    path = path / "manifest.json" if path.is_dir() else path
    details = manifest.read_json(path)
    if details["status"] != "ok" or not details["layers"]:
        raise DataError(f"{path}: holds no quantized layers.")
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
        config = {**_original_config(denoiser, location), "quantization_config": configuration}
        manifest.write_json(folder / "config.json", config)
        metadata = {"format": "pt"}
        tensors, own = module.finish(folder, tensors, configuration)
        metadata |= own
        _save_tensors(folder / module.file_name(denoiser), tensors, metadata)


def weight_of(layer, state):
    """(format, QuantizedWeight) of a layer whose codes this project holds."""
    from quantwatt.formats.quantized_weight import QuantizedWeight, load_format

    weight_format = load_format(layer["weights"])
    return weight_format, QuantizedWeight.from_state(state, weight_format, layer["in_features"])


def model_file(denoiser):
    """The name under which the model's own library looks for its weights."""
    from diffusers import ModelMixin

    return "diffusion_pytorch_model.safetensors" if isinstance(denoiser, ModelMixin) else "model.safetensors"


def _tensors(module, form, path, details, denoiser, transposed):
    """Every tensor of the model: quantized layers in the form, all others as the model's own library stores them.

    Args:
        transposed: layers whose weights it stores as [columns, rows].
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
    turned = {f"{name}.weight" for name in transposed}
    whole = {name: stored.read(name) for name in sorted(rest)}
    return tensors | {name: tensor.T if name in turned else tensor for name, tensor in whole.items()}


def _check(module, name, layer, state, denoiser, transposed):
    """Refuse what no form has a place for."""
    import torch

    if "part_of" in layer:
        raise NotExpressible(f"it is one part of {layer['part_of']}, and the form knows whole layers")
    if type(denoiser.get_submodule(name)) is not torch.nn.Linear:
        raise NotExpressible("it is not a linear layer of the model")
    if name in transposed and not module.CONV1D:
        raise NotExpressible("it is transformers' Conv1D, and the form's readers know linear layers alone")
    if unknown := sorted(state.keys() - module.PARTS):
        raise NotExpressible(REASONS.get(unknown[0], f"the form has no place for its '{unknown[0]}'"))


def _skipped(denoiser, layers):
    import torch

    linear = [name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear)]
    return [name for name in linear if name not in layers]


def _original_config(denoiser, location):
    """The content of the config.json that the model was loaded with; of a pipeline, its denoiser's."""
    folder = Path(location)
    if (folder / "model_index.json").exists():
        parts, kind = manifest.read_json(folder / "model_index.json"), type(denoiser).__name__
        folder /= next(name for name, part in parts.items() if isinstance(part, list) and part[1] == kind)
    return manifest.read_json(folder / "config.json")


def _save_tensors(path, tensors, metadata):
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # its name for a failed write
        raise OSError(str(error)) from error


@contextlib.contextmanager
def _folder(path):
    """A folder under a temporary name, which becomes `path` when all is written."""
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
