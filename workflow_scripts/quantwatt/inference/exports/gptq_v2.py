"""Version 2 of GPTQ's format: zero points are stored unchanged and may be 0. auto-gptq reads only version 1."""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.inference.exports import gptq

PARTS, CONV1D = gptq.PARTS, gptq.CONV1D
file_name, finish, save = gptq.file_name, gptq.finish, gptq.save


def tensors(
    name: str, layer: Mapping[str, Any], state: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """See quantwatt.inference.exports."""
    return gptq.tensors(name, layer, state, dtype, first_zero=0)


def configuration(details: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """See quantwatt.inference.exports."""
    return {**gptq.configuration(details, skipped), "checkpoint_format": "gptq_v2"}
