"""A denoiser in GGUF, as ComfyUI-GGUF, stable-diffusion.cpp and diffusers' from_single_file read it.

Tensors have the names of the original checkpoint (quantwatt.models.original_names). Packed weights are copied: they are
ggml's blocks already. An original layer that diffusers splits (queries, keys and values) is one tensor of one type, so
its parts must have the same. What is not quantized keeps its values: float16 and float32 as they are, bfloat16 as BF16
in matrices, and as F32 elsewhere, where readers expect PyTorch's own types.

config.json beside the file is diffusers' configuration of the model, without which diffusers asks the hub:

    SD3Transformer2DModel.from_single_file(
        FOLDER/diffusion_pytorch_model.gguf, config=FOLDER,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16), dtype=torch.bfloat16)
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantwatt import registry
from quantwatt.artifacts import manifest
from quantwatt.inference.exports import NotExpressible
from quantwatt.models import original_names

PARTS = {"codes"}
CONV1D = False
# The names of gguf.LlamaFileType for a file of one type; "small" are those K-quants that have no larger tensors.
FILE_TYPES = {f"Q{bits}_K": f"MOSTLY_Q{bits}_K_S" for bits in (3, 4, 5)}
PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file: its type, and its values or blocks with one row per output."""

    kind: str  # a name of gguf.GGMLQuantizationType
    data: torch.Tensor


def tensors(name: str, layer: Mapping[str, Any], state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict:
    """See quantwatt.inference.exports: returns {name: Tensor}."""
    if layer["activations"]:
        raise NotExpressible("its activations are quantized, and the format stores only quantized weights")
    return {f"{name}.weight": Tensor(_type_of(layer), state["codes"])}


def configuration(details: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """Return nothing, because every tensor of the file says its own type.

    Raises:
        NotExpressible: a format is none of GGUF's.
    """
    for layer in details["layers"].values():
        _type_of(layer)
    return {}


def _type_of(layer):
    """Return the layer's type, a name of gguf.GGMLQuantizationType."""
    kind = getattr(registry.load("formats", layer["weights"]["format"]).Format, "TYPE", None)
    if kind is None:
        raise NotExpressible(f"GGUF has no '{layer['weights']['format']}' weights")
    return kind


def file_name(denoiser: torch.nn.Module) -> str:
    """See quantwatt.inference.exports."""
    return "diffusion_pytorch_model.gguf"


def finish(
    folder: Path, tensors: Mapping[str, torch.Tensor | Tensor], configuration: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename and join tensors: return ({original name: Tensor}, {"architecture", "file_type"}).

    Raises:
        NotExpressible: the architecture's original names are not known, or parts of an original layer differ in type.
    """
    config = manifest.read_json(folder / "config.json")
    try:
        originals = original_names.originals(tensors, config)
    except ValueError as error:
        raise NotExpressible(str(error)) from error
    typed = {name: tensor if isinstance(tensor, Tensor) else _plain(tensor) for name, tensor in tensors.items()}
    found = {}
    for name, original in originals.items():
        parts = [typed[part] for part in original.parts]
        if len({part.kind for part in parts}) > 1:
            kinds = ", ".join(f"{own}: {part.kind}" for own, part in zip(original.parts, parts, strict=True))
            raise NotExpressible(f"{name} is one tensor of one type, and its parts differ ({kinds})")
        data = torch.cat([part.data for part in parts]) if len(parts) > 1 else parts[0].data
        found[name] = Tensor(parts[0].kind, torch.cat(data.chunk(2)[::-1]) if original.swapped else data)
    sizes = Counter()
    for tensor in typed.values():
        if tensor.kind not in PLAIN.values():
            sizes[tensor.kind] += tensor.data.numel()
    kind = sizes.most_common(1)[0][0]
    file_type = FILE_TYPES.get(kind, f"MOSTLY_{kind}")
    return found, {"architecture": str(original_names.architecture(config)), "file_type": file_type}


def _plain(tensor):
    if tensor.dtype == torch.bfloat16 and tensor.dim() == 2:
        return Tensor("BF16", tensor.contiguous().view(torch.uint8))
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return Tensor(PLAIN[tensor.dtype], tensor)


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file.

    Raises:
        OSError: it cannot be written.
    """
    import gguf

    writer = gguf.GGUFWriter(path, metadata["architecture"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[metadata["file_type"]])
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor(name, tensor.data.contiguous().numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
