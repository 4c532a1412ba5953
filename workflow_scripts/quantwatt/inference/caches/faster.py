"""FasterCache (arXiv 2410.19355): most steps compute one branch of guidance and estimate the other, by frequency.

In the steps that compute one branch only, attention is extrapolated from two earlier ones, too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts.errors import Unsupported
from quantwatt.inference import transformer_blocks

if TYPE_CHECKING:
    import torch

    from quantwatt.inference.drawing import Place

UNIT, APART = "attention layers", False
# Denoisers whose batch holds the unconditional branch first, in arguments by keyword, and whose output is an image.
KNOWN = ("SD3Transformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel")
BOTH_BRANCHES = ("pooled_projections",)  # arguments besides those that diffusers knows to hold both branches


def refusal(denoiser: "torch.nn.Module", settings: Mapping[str, Any]) -> str | None:
    if type(denoiser).__name__ not in KNOWN:
        return f"is none of those whose branches diffusers' FasterCache can take apart ({', '.join(KNOWN)})"
    return transformer_blocks.attention_refusal(denoiser)


def apply(denoiser: "torch.nn.Module", settings: Mapping[str, Any], place: "Place") -> None:
    """Raises Unsupported without guidance, where a batch has no second branch."""
    from diffusers.hooks import FasterCacheConfig, apply_faster_cache
    from diffusers.hooks.faster_cache import _UNCOND_COND_INPUT_KWARGS_IDENTIFIERS as KNOWN_ARGUMENTS

    if (place.asked.guidance or 0) <= 1:
        raise Unsupported("cache faster: without guidance there is no second branch to estimate.")
    timesteps = tuple(settings["timesteps"])
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=settings["every"],
        spatial_attention_timestep_skip_range=timesteps,
        unconditional_batch_skip_range=settings["unconditional_every"],
        unconditional_batch_timestep_skip_range=timesteps,
        attention_weight_callback=lambda _: settings["weight"],
        tensor_format="BCHW",
        current_timestep_callback=place.timestep,
        _unconditional_conditional_input_kwargs_identifiers=[*KNOWN_ARGUMENTS, *BOTH_BRANCHES],
    )
    apply_faster_cache(denoiser, config)
