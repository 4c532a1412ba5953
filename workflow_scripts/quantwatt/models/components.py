"""The components of a pipeline beside its denoiser: text encoders of transformers, and autoencoders of diffusers.

Quantized are the linear layers in the blocks of a text encoder, and what an autoencoder decodes with. Embeddings,
norms, heads, towers for pictures and the encoder of an autoencoder keep the model's dtype.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models import architecture, model_folder
from quantwatt.models.families import pipelines
from quantwatt.models.family import ImageFamily, Settings
from quantwatt.models.network import Network

DECODER = "decoder."  # what `decode` of an autoencoder calls
PICTURES = re.compile(r"(^|\.)(visual|vision|image)")  # towers of language models that read pictures, too


def of(family: Any, settings: Settings, location: str | Path) -> dict[str, "Component"]:
    """{name: Component} of the parts of a pipeline that have layers to quantize, without the denoiser.

    Args:
        family: of the model; text families have no components.
    """
    if not isinstance(family, ImageFamily):
        return {}
    without = (*model_folder.left_out(settings), *model_folder.CENSOR, family.denoiser_name(location))
    parts = model_folder.weighted_parts(location, settings, without)
    found = {name: Component(part) for name, part in sorted(parts.items())}
    return {name: part for name, part in found.items() if part.quantizable(part.meta_network(location))}


def load(family: Any, settings: Settings, location: str | Path, name: str) -> "Component":
    """The Component of a name.

    Raises:
        DataError: the pipeline has no such part, or it has nothing to quantize.
    """
    known = of(family, settings, location)
    if name not in known:
        raise DataError(
            f"{location}: has no component '{name}' with layers to quantize (there are: {', '.join(known) or 'none'})."
        )
    return known[name]


class Component(Network):
    """A part of a pipeline's folder, as `quantwatt.models.model_folder.Part` describes it.

    decodes: whether the pipeline calls its `decode` and not the module, as it does with an autoencoder.
    """

    def __init__(self, part: model_folder.Part):
        self.part = part
        self.kind: Any = pipelines.part_class(part)
        self.decodes = part.library == "diffusers" and hasattr(self.kind, "decode")

    def load_network(self, settings: Mapping[str, Any], location: str | Path) -> torch.nn.Module:
        """See Network; the module of an autoencoder is called as its `decode`."""
        network = pipelines.load_part(self.part, settings).eval()
        for module in network.modules():  # a cache of keys and values would grow whenever a block is called again
            if hasattr(config := getattr(module, "config", None), "use_cache"):
                config.use_cache = False
        if self.decodes:
            network.forward = lambda latents: network.decode(latents)  # ty: ignore
        return network

    def meta_network(self, location: str | Path) -> torch.nn.Module:
        """See Network; buffers that no file stores (positions) are computed."""
        from accelerate import init_empty_weights
        from transformers import AutoConfig

        if self.part.library == "diffusers":
            config = self.kind.load_config(self.part.folder, local_files_only=True)
            with init_empty_weights():
                return self.kind.from_config(config).eval()
        config = AutoConfig.from_pretrained(self.part.folder, local_files_only=True)
        with init_empty_weights():
            return self.kind(config).eval()

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        """See Network: the layers of a text encoder, or the parts of a decoder, as those of a UNet."""
        if self.decodes:
            return [name for name in architecture.blocks(denoiser) if name.startswith(DECODER)]
        layers = architecture.quantizable(denoiser)
        return [name for name in _repeated(denoiser) if any(layer.startswith(f"{name}.") for layer in layers)]

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        """See Network."""
        layers = architecture.quantizable(denoiser)
        if self.decodes:
            return [name for name in layers if name.startswith(DECODER)]
        blocks = tuple(f"{name}." for name in self.blocks(denoiser))
        return [name for name in layers if name.startswith(blocks)]

    def real_tokens(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """See Network; the last token's row of a block's mask allows every token that is not padding."""
        mask = inputs.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
            return None
        last = mask[:, 0, -1]  # [samples or 1, tokens]
        real = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        samples = next((len(value) for value in inputs.values() if _is_batch(value)), len(real))
        return real.expand(samples, -1)


def _repeated(network) -> Iterator[str]:
    """Names of the members of the outermost ModuleLists, without towers for pictures."""
    outer: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{above}.") for above in outer)
        if isinstance(module, torch.nn.ModuleList) and not inside and not PICTURES.search(name):
            outer.append(name)
            yield from (f"{name}.{index}" for index in range(len(module)))


def _is_batch(value):
    return isinstance(value, torch.Tensor) and value.ndim == 3  # hidden states [samples, tokens, channels]
