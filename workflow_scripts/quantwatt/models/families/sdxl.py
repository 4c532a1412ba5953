"""Stable Diffusion XL and SDXL-Turbo (StableDiffusionXLPipeline, UNet2DConditionModel)."""

import torch

from quantwatt.models.architecture import (
    blocks,  # noqa: F401  (the family's own, too)
    quantizable,
)
from quantwatt.models.families import effects, pipelines, recording

DENOISER = ("unet", "UNet2DConditionModel")
# A sampling that names neither is SDXL-Turbo's: one step, without a negative branch.
DEFAULTS = {"steps": 1, "guidance": 0.0}


def load(settings, location, denoiser=None):
    """The whole pipeline on the CPU, with `denoiser` in place of the stored one if given."""
    # With a watermark images would depend on whether the watermarking library is installed.
    options = {"add_watermarker": False} | ({} if denoiser is None else {"unet": denoiser})
    return pipelines.load("StableDiffusionXLPipeline", settings, location, **options)


def load_denoiser(settings, location):
    """The UNet alone, on the CPU, in the model's type."""
    return pipelines.load_denoiser(*DENOISER, settings, location)


def meta_denoiser(location):
    """The UNet's architecture on the meta device."""
    return pipelines.meta_denoiser(*DENOISER, location)


def generate(pipeline, prompts, seeds, sampling):
    """Images of one batch of prompts.

    Noise, also what the sampler adds between steps, comes from one CPU generator per prompt, so that image i is the
    same function of its seed for every method, device and batch.

    Returns:
        [n, height, width, 3] float32 in 0..1 (NaN where the model produced NaN).
    Raises:
        DataError: a key of the sampling changes nothing, or the pipeline does not draw what it says.
    """
    with effects.checked(pipeline, pipeline.unet, sampling, len(prompts)):
        return _call(pipeline, seeds, sampling, output_type="np", **_texts(prompts, sampling))


def _texts(prompts, sampling):
    # An empty negative prompt is encoded, too: zeros in its place, as without one, would have no first token.
    return {"prompt": list(prompts), "negative_prompt": [sampling["negative_prompt"]] * len(prompts)}


def _call(pipeline, seeds, sampling, **inputs):
    return pipelines.draw(
        pipeline,
        seeds,
        num_inference_steps=sampling["steps"],
        guidance_scale=sampling["guidance"],
        height=sampling["height"],
        width=sampling["width"],
        **inputs,
    ).images


def prepare(pipeline, prompts, seeds, sampling):
    """A function that draws one batch of images and leaves them on the device."""
    return lambda: _call(pipeline, seeds, sampling, output_type="pt", **_texts(prompts, sampling))


@torch.no_grad()
def phases(pipeline, prompts, seeds, sampling):
    """{"text", "denoise", "decode"}: functions that do one batch's part by itself, on what the parts before gave."""

    @torch.no_grad()
    def text():
        guided = sampling["guidance"] > 1
        return pipeline.encode_prompt(do_classifier_free_guidance=guided, **_texts(prompts, sampling))

    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeddings = dict(zip(names, text(), strict=True))

    def denoise():
        return _call(pipeline, seeds, sampling, output_type="latent", **embeddings)

    latents = denoise()

    @torch.no_grad()
    def decode():
        return pipeline.image_processor.postprocess(_decode(pipeline.vae, latents), output_type="pt")

    return {"text": text, "denoise": denoise, "decode": decode}


def _decode(vae, latents):
    """The pipeline's last part: images [n, 3, height, width], computed in float32 where float16 would overflow."""
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


def record(pipeline, prompts, seeds, calibration, steps):
    """Denoiser inputs that a float trajectory passes through, as of `recording.record`; with guidance the batch holds
    both branches, unconditional first."""
    return recording.record(pipeline, pipeline.unet, generate, prompts, seeds, calibration, steps)


def segments(denoiser):
    """{}: no layer's output is cut into chunks that are used apart."""
    return {}


def skips(denoiser):
    """{layer: channels of each part} of the convolutions that read a skip connection behind what comes from below."""
    left = [denoiser.conv_in.out_channels]
    for block in denoiser.down_blocks:
        left += [resnet.out_channels for resnet in block.resnets]
        left += [sampler.out_channels for sampler in block.downsamplers or []]
    found = {}
    for i, block in enumerate(denoiser.up_blocks):
        for j, resnet in enumerate(block.resnets):
            skip = left.pop()
            for layer in ("conv1", "conv_shortcut"):
                if getattr(resnet, layer) is not None:
                    found[f"up_blocks.{i}.resnets.{j}.{layer}"] = (resnet.in_channels - skip, skip)
    return found


def first_token(denoiser):
    """Linear layers that read the text, whose token 0 no prompt changes: keys and values of cross-attention."""
    return [name for name in quantizable(denoiser) if name.endswith(("attn2.to_k", "attn2.to_v"))]


def content(denoiser):
    """Layers that decide what is seen (MixDQ's content group): feed-forward and cross-attention."""
    return [name for name in quantizable(denoiser) if ".attn2." in name or ".ff." in name]
