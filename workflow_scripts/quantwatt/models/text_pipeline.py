"""A text model and its tokenizer, as one pipeline that a checkpoint is loaded into."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from quantwatt.jobs import torchvision_ops  # noqa: F401  (before transformers)
from quantwatt.models import model_folder, tokenizers

ATTENTION = "sdpa"  # torch's scaled_dot_product_attention, which takes a mask unchanged


@dataclass
class TextPipeline:
    """model: a transformers model in evaluation mode; tokenizer: as AutoTokenizer loads it."""

    model: Any
    tokenizer: Any

    def to(self, device: str) -> Self:
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    def tokens(self, asked: int) -> int:
        """The length of a sample in tokens: `asked`, at most the model's number of positions."""
        return min(asked, self.model.config.max_position_embeddings)


def stored_model(auto_class: Any, settings: Mapping[str, Any], location: str | Path) -> Any:
    """The model of a local folder on the CPU, in the dtype of the settings.

    Args:
        auto_class: transformers' class for the task.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would show one bar per layer, between quantwatt's bars
    weights = model_folder.weights(Path(location), "transformers", auto_class.__name__, settings)
    return auto_class.from_pretrained(
        location,
        dtype=getattr(torch, settings["dtype"]),
        attn_implementation=ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        variant=weights.variant,
    ).eval()


def empty_model(auto_class: Any, location: str | Path) -> Any:
    """The model's architecture on the meta device."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(location, local_files_only=True)
    with torch.device("meta"):
        return auto_class.from_config(config, attn_implementation=ATTENTION).eval()


def load(model: Any, location: str | Path) -> TextPipeline:
    """The pipeline of a model with the tokenizer of a local folder.

    Raises:
        DataError: see `quantwatt.models.tokenizers.load`.
    """
    return TextPipeline(model, tokenizers.load(location))
