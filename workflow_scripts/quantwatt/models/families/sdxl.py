"""Stable Diffusion XL and SDXL-Turbo (StableDiffusionXLPipeline, UNet2DConditionModel)."""

from typing import Any, ClassVar

import torch

from quantwatt.models import architecture
from quantwatt.models.families.pipeline_family import LatentDiffusionFamily
from quantwatt.models.family import Settings


class Family(LatentDiffusionFamily):
    """SDXL and SDXL-Turbo: residual blocks with skip connections, and attention."""

    PIPELINE = "StableDiffusionXLPipeline"
    DENOISER = ("unet", "UNet2DConditionModel")
    # The defaults are SDXL-Turbo's: one step, without guidance.
    DEFAULTS: ClassVar = {"steps": 1, "guidance": 0.0}

    def options(self, settings: Settings) -> dict[str, Any]:
        # With a watermark, images would depend on whether the watermarking library is installed.
        return {"add_watermarker": False}

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Decode in float32 where float16 would overflow."""
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.to(torch.float32)
        mean, std = vae.config.latents_mean, vae.config.latents_std
        latents = latents.to(vae.dtype)
        if mean is not None and std is not None:
            mean, std = (latents.new_tensor(values)[:, None, None] for values in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        image = vae.decode(latents, return_dict=False)[0]
        if upcast:
            vae.to(torch.float16)
        return image

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.blocks(denoiser)

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.quantizable(denoiser)

    def skips(self, denoiser: Any) -> dict[str, tuple[int, int]]:
        """See Family: the block's input comes first in the channels, the skip connection second."""
        left = [denoiser.conv_in.out_channels]
        for block in denoiser.down_blocks:
            left += [resnet.out_channels for resnet in block.resnets]
            left += [sampler.out_channels for sampler in block.downsamplers or []]
        channels = {}
        for i, block in enumerate(denoiser.up_blocks):
            for j, resnet in enumerate(block.resnets):
                skip = left.pop()
                for layer in ("conv1", "conv_shortcut"):
                    if getattr(resnet, layer) is not None:
                        channels[f"up_blocks.{i}.resnets.{j}.{layer}"] = (resnet.in_channels - skip, skip)
        return channels

    def first_token(self, denoiser: torch.nn.Module) -> list[str]:
        """Keys and values of cross-attention: token 0 of the text is the same for every prompt."""
        return [name for name in self.quantizable(denoiser) if name.endswith(("attn2.to_k", "attn2.to_v"))]

    def content(self, denoiser: torch.nn.Module) -> list[str]:
        """Feed-forward and cross-attention layers."""
        return [name for name in self.quantizable(denoiser) if ".attn2." in name or ".ff." in name]
