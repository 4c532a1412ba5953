"""TaylorSeer (arXiv 2503.06923): most steps extrapolate the outputs of the few that are computed."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantwatt.inference import transformer_blocks

if TYPE_CHECKING:
    import torch

    from quantwatt.inference.drawing import Place

UNIT, APART = "layers", True


def refusal(denoiser: "torch.nn.Module", settings: Mapping[str, Any]) -> str | None:
    if not settings["whole"]:
        return transformer_blocks.attention_refusal(denoiser)
    if not hasattr(denoiser, "proj_out"):
        return "has no last layer `proj_out`, whose outputs could be extrapolated"
    return transformer_blocks.refusal(denoiser)


def apply(denoiser: "torch.nn.Module", settings: Mapping[str, Any], place: "Place") -> None:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    if settings["whole"]:
        transformer_blocks.keep_text(transformer_blocks.stack(denoiser)[-1])
    config = TaylorSeerCacheConfig(
        cache_interval=settings["interval"],
        disable_cache_before_step=settings["first"],
        max_order=settings["order"],
        taylor_factors_dtype=next(denoiser.parameters()).dtype,
        use_lite_mode=settings["whole"],
        cache_identifiers=None if settings["whole"] else [*map(re.escape, transformer_blocks.attention(denoiser))],
    )
    apply_taylorseer_cache(denoiser, config)
