"""What quantizing must know of one network: how it is loaded, and which blocks and layers it has.

A family is the network of its denoiser; `quantwatt.models.components.Component` is any other part of a pipeline.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch


class Network(ABC):
    """Base of families and components; its methods call their network `denoiser`, as most are one."""

    BLOCKS: ClassVar[str] = ""  # the ModuleList of the denoiser's blocks, in execution order
    # Patterns of the ends of layer names in a block, in order of execution: layers that match one pattern read the
    # outputs of layers that match earlier patterns.
    STAGES: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def load_network(self, settings: Mapping[str, Any], location: str | Path) -> torch.nn.Module:
        """The network alone, on the CPU, in the model's type."""

    @abstractmethod
    def meta_network(self, location: str | Path) -> torch.nn.Module:
        """The network's architecture: parameters on the meta device."""

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        """Names of the modules that are quantized one after another."""
        return [f"{self.BLOCKS}.{name}" for name, _ in denoiser.get_submodule(self.BLOCKS).named_children()]

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        """Names of the layers that may be quantized; each belongs to one block.

        These are the linear layers, and convolutions in families that override this. Embeddings, norms and heads keep
        the model's dtype.
        """
        return [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith(f"{self.BLOCKS}.")
        ]

    def segments(self, denoiser: torch.nn.Module) -> dict[str, int]:
        """{layer: chunks} of the layers whose output is split into chunks of equal size for separate uses."""
        return {}

    def stages(self, names: list[str]) -> list[list[str]] | None:
        """Group a block's layers so that each group reads only outputs of earlier groups.

        Args:
            names: quantizable layers of the block, or chunks of them (NAME.0, ...).
        Returns:
            the groups in order of execution; None where the order is known only when the block runs.
        Raises:
            ValueError: a layer matches no pattern of STAGES.
        """
        if not self.STAGES:
            return None
        groups = [[name for name in names if re.search(rf"(^|\.){stage}(\.\d+)?$", name)] for stage in self.STAGES]
        if unknown := set(names).difference(*groups):
            raise ValueError(f"{min(unknown)}: of no stage of a block")
        return [group for group in groups if group]

    def skips(self, denoiser: torch.nn.Module) -> dict[str, tuple[int, int]]:
        """{layer: (channels of the block's input, of the skip connection)} of the convolutions that read both."""
        return {}

    def first_token(self, denoiser: torch.nn.Module) -> list[str]:
        """Layers whose input's first token is the same for all prompts."""
        return []

    def content(self, denoiser: torch.nn.Module) -> list[str] | None:
        """Layers that decide the content of an image, not its quality (MixDQ's content group); None: unknown."""
        return None

    def real_tokens(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Mask of a block's tokens, False where padded: bool [samples, tokens]; None where nothing is padded."""
        return None
