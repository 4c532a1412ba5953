"""Pyramid attention broadcast (arXiv 2408.12588): within a range of timesteps few steps compute their attention."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantwatt.inference import transformer_blocks

if TYPE_CHECKING:
    import torch

    from quantwatt.inference.drawing import Place

UNIT, APART = "attention layers", False


def refusal(denoiser: "torch.nn.Module", settings: Mapping[str, Any]) -> str | None:
    return transformer_blocks.attention_refusal(denoiser)


def apply(denoiser: "torch.nn.Module", settings: Mapping[str, Any], place: "Place") -> None:
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    timesteps = tuple(settings["timesteps"])
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=settings["every"],
        cross_attention_block_skip_range=settings["cross_every"],
        spatial_attention_timestep_skip_range=timesteps,
        cross_attention_timestep_skip_range=timesteps,
        current_timestep_callback=place.timestep,
    )
    apply_pyramid_attention_broadcast(denoiser, config)
