"""Write the files of a quantized checkpoint: packed weights in safetensors, and their manifest.

`quantwatt.inference.checkpoint` loads them and computes with them; quantizing does not depend on it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts import layer_variants, manifest, shards

if TYPE_CHECKING:
    import torch


def save(
    folder: str | Path,
    denoiser: "torch.nn.Module",
    states: "Mapping[str, Mapping[str, torch.Tensor]]",
    reports: Mapping[str, Mapping[str, Any]],
    details: Mapping[str, Any],
    shard_bytes: int = shards.SHARD_BYTES,
) -> None:
    """Write the denoiser's weights and, last, the manifest.

    Args:
        denoiser: module whose quantized layers have been replaced.
        states, reports: as `quantwatt.quantize.sequential.quantize` returns.
        details: further entries of the manifest.
        shard_bytes: largest size of a file, in bytes; larger weights become several files.
    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    state = {
        name: tensor
        for name, tensor in _stored_once(denoiser.state_dict()).items()
        if not any(name.startswith(f"{layer}.") and not _stays(name, layer, reports[layer]) for layer in states)
    }
    for name, parts in states.items():
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    files = manifest.describe_files(folder, shards.write(folder, state, shard_bytes))
    size = sum(file["bytes"] for file in files.values())
    manifest.write_json(folder / "manifest.json", {**details, "size_bytes": size, "files": files, "layers": reports})


def _stays(name, layer, report):
    """Whether a tensor of a quantized layer is stored as it is: its bias, and a weight that some steps compute with."""
    return name == f"{layer}.bias" or (name == f"{layer}.weight" and layer_variants.keeps_weight(report))


def _stored_once(state):
    """A state dict in which each tied weight has only its first name."""
    first = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
    return {name: state[name] for name in first.values()}
