"""Stable Diffusion 3 and 3.5 (StableDiffusion3Pipeline, SD3Transformer2DModel)."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from quantwatt.models import architecture
from quantwatt.models.families.pipeline_family import LatentDiffusionFamily
from quantwatt.models.family import Pipeline, Settings


class Family(LatentDiffusionFamily):
    """Stable Diffusion 3 and 3.5, with or without the T5 text encoder."""

    PIPELINE = "StableDiffusion3Pipeline"
    DENOISER = ("transformer", "SD3Transformer2DModel")
    BLOCKS = "transformer_blocks"
    STAGES = (
        r"norm1(_context)?\.linear",
        r"attn2?\.(to_[qkv]|add_[qkv]_proj)",
        r"attn2?\.(to_out\.0|to_add_out)",
        r"ff(_context)?\.net\.0\.proj",
        r"ff(_context)?\.net\.2",
    )
    DEFAULTS: ClassVar = {"steps": 28, "guidance": 4.5}
    FURTHER_PROMPTS: ClassVar = {"prompt_2": None, "prompt_3": None}

    def load(
        self,
        settings: Settings,
        location: str | Path,
        denoiser: torch.nn.Module | None = None,
        **components: torch.nn.Module,
    ) -> Pipeline:
        pipeline = super().load(settings, location, denoiser, **components)
        pipeline.max_sequence_length = settings["max_sequence_length"]
        return pipeline

    def options(self, settings: Settings) -> dict[str, Any]:
        return {} if settings["text_encoder_3"] else {"text_encoder_3": None, "tokenizer_3": None}

    def encoding(self, pipeline: Pipeline) -> dict[str, Any]:
        return {"max_sequence_length": pipeline.max_sequence_length}

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]

    def segments(self, denoiser: torch.nn.Module) -> dict[str, int]:
        """The modulation layers inside transformer blocks."""
        layers = architecture.segments(denoiser).items()
        return {name: chunks for name, chunks in layers if name.startswith(f"{self.BLOCKS}.")}
