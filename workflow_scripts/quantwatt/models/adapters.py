"""LoRA adapters of a denoiser: W + scale * alpha / rank * B A (https://arxiv.org/abs/2106.09685), from safetensors.

Files name layers as diffusers and PEFT do: transformer.LAYER.lora_A.weight [rank, in] and lora_B.weight [out, rank],
or lora.down and lora.up. alpha is a tensor LAYER.alpha, or stands in the file's metadata as diffusers writes it, or is
the rank. An adapter is fused into the weights, or kept beside a layer, whatever this computes in.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, check_tensors

NAME = re.compile(
    r"(?:base_model\.model\.|transformer\.|unet\.)?(?P<layer>.+?)\."
    r"(?:(?P<down>lora_A|lora\.down|lora_down)|(?P<up>lora_B|lora\.up|lora_up)|(?P<alpha>alpha))(?:\.default)?(?:\.weight)?"
)
METADATA = "lora_adapter_metadata"  # diffusers' key of a file's metadata
MOST_RANK = 4096

Delta = tuple[torch.Tensor, torch.Tensor]  # down [rank, in] and up [out, rank], with all factors in up; float32


def file_of(entry: Mapping[str, Any]) -> Path:
    """The file of an `adapters` entry: a local one, or one of the hub's cache at its revision.

    Raises:
        DataError: it is not there, or cannot be fetched.
    """
    if entry.get("path"):
        path = PROJECT / entry["path"]
        path = path / entry["weight_name"] if path.is_dir() and entry.get("weight_name") else path
        if path.suffix != ".safetensors" or not path.is_file():
            raise DataError(f"adapters: {path}: no safetensors file; name it as path, or by weight_name in a folder.")
        return path
    from huggingface_hub import errors, hf_hub_download

    name = entry.get("weight_name", "pytorch_lora_weights.safetensors")
    try:
        return Path(hf_hub_download(entry["hub"], name, revision=entry["revision"]))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise DataError(f"adapters: {entry['hub']}: {name} cannot be fetched ({type(error).__name__}).") from error


def read(entry: Mapping[str, Any]) -> dict[str, Delta]:
    """{layer: Delta} of one adapter, with its own scale.

    Raises:
        DataError: the file is damaged, or holds something else than a LoRA of linear layers of a denoiser.
    """
    path = file_of(entry)
    check_tensors(path, "fetch the adapter again.")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        told = _told(path, (file.metadata() or {}).get(METADATA))
        for name in file.keys():  # noqa: SIM118  (a file handle, not a mapping)
            match = NAME.fullmatch(name)
            if match is None or name.startswith("text_encoder"):
                raise DataError(
                    f"{path}: {name} is no part of a denoiser's LoRA in diffusers' names; save it by diffusers' "
                    "save_lora_weights, for the denoiser alone."
                )
            part = next(key for key in ("down", "up", "alpha") if match[key])
            parts.setdefault(match["layer"], {})[part] = file.get_tensor(name).float()
    return {layer: _delta(path, layer, own, told, entry.get("scale", 1.0)) for layer, own in parts.items()}


def _told(path, text):
    """(alpha or None, whether it is divided by the root of the rank) of diffusers' metadata."""
    try:
        content = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: its {METADATA} is not JSON.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: its {METADATA} is no JSON object.")
    own = {key.rpartition(".")[2]: value for key, value in content.items()}
    for key in ("use_dora", "alpha_pattern", "rank_pattern"):
        if own.get(key):
            raise DataError(f"{path}: its {METADATA} has {key}, which is not read.")
    return own.get("lora_alpha"), bool(own.get("use_rslora"))


def _delta(path, layer, parts, told, scale):
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None or down.dim() != 2 or up.dim() != 2 or up.shape[1] != len(down):
        raise DataError(f"{path}: {layer}: is not a LoRA of a linear layer (lora_A [rank, in], lora_B [out, rank]).")
    rank = len(down)
    if not 0 < rank <= MOST_RANK or not (down.isfinite().all() and up.isfinite().all()):
        raise DataError(f"{path}: {layer}: its rank is {rank}, or its values are not finite.")
    alpha = parts["alpha"].item() if "alpha" in parts else told[0] if told[0] is not None else rank
    return down, up * (scale * alpha / (math.sqrt(rank) if told[1] else rank))


def fuse(denoiser: torch.nn.Module, entries: Iterable[Mapping[str, Any]] | None) -> torch.nn.Module:
    """Add adapters to the weights, in float32; return the denoiser.

    Raises:
        DataError: a layer of an adapter is not a linear layer of the denoiser.
    """
    for name, layer, (down, up) in _layers(denoiser, entries):
        weight = layer.weight.data
        if up.shape[0] != weight.shape[0] or down.shape[1] != weight.shape[1]:
            raise DataError(f"adapters: {name}: is for {up.shape[0]}x{down.shape[1]}, not {tuple(weight.shape)}.")
        layer.weight.data = (weight.float() + up @ down).to(weight.dtype)
    return denoiser


def keep(denoiser: torch.nn.Module, entries: Iterable[Mapping[str, Any]] | None, dtype: torch.dtype) -> int:
    """Put adapters beside the layers, quantized or not; return their bytes.

    Raises:
        DataError: as `fuse`.
    """
    size = 0
    for name, layer, (down, up) in list(_layers(denoiser, entries)):
        denoiser.set_submodule(name, Adapted(layer, down.to(dtype), up.to(dtype)))
        size += (down.numel() + up.numel()) * dtype.itemsize
    return size


def _layers(denoiser, entries):
    """Yield (name, layer, Delta) of all adapters."""
    for entry in entries or ():
        for name, delta in read(entry).items():
            try:
                layer = denoiser.get_submodule(name)
            except AttributeError:
                layer = None
            if layer is None or isinstance(layer, torch.nn.Conv2d):
                raise DataError(f"adapters: {file_of(entry)}: the model has no linear layer {name}.")
            yield name, layer, delta


class Adapted(torch.nn.Module):
    """A layer with an adapter beside it: layer(x) + x downᵀ upᵀ."""

    def __init__(self, layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        beside = inputs
        for factor in (self.down, self.up):
            assert isinstance(factor, torch.Tensor)
            beside = torch.nn.functional.linear(beside, factor.to(inputs.dtype))
        return self.layer(inputs) + beside
