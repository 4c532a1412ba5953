"""Stable Diffusion 3 and 3.5 (StableDiffusion3Pipeline, SD3Transformer2DModel)."""

import re

import torch

from quantwatt.models import architecture
from quantwatt.models.families import effects, pipelines, recording

DEFAULTS = {"steps": 28, "guidance": 4.5}  # of a sampling
DENOISER = ("transformer", "SD3Transformer2DModel")

# The linear layers of a block, by what follows the block's name; each line reads what those before it have computed.
STAGES = (
    r"norm1(_context)?\.linear",
    r"attn2?\.(to_[qkv]|add_[qkv]_proj)",
    r"attn2?\.(to_out\.0|to_add_out)",
    r"ff(_context)?\.net\.0\.proj",
    r"ff(_context)?\.net\.2",
)


def load(settings, location, denoiser=None):
    """The whole pipeline on the CPU, with `denoiser` in place of the stored one if given."""
    options = {} if settings["text_encoder_3"] else {"text_encoder_3": None, "tokenizer_3": None}
    if denoiser is not None:
        options["transformer"] = denoiser
    pipeline = pipelines.load("StableDiffusion3Pipeline", settings, location, **options)
    pipeline.max_sequence_length = settings["max_sequence_length"]
    return pipeline


def load_denoiser(settings, location):
    """The transformer alone, on the CPU, in the model's type."""
    return pipelines.load_denoiser(*DENOISER, settings, location)


def meta_denoiser(location):
    """The transformer's architecture on the meta device."""
    return pipelines.meta_denoiser(*DENOISER, location)


def generate(pipeline, prompts, seeds, sampling):
    """Images of one batch of prompts.

    Noise comes from one CPU generator per prompt, so that image i is the same function of its seed for every method,
    device and batch.

    Returns:
        [n, height, width, 3] float32 in 0..1 (NaN where the model produced NaN).
    Raises:
        DataError: a key of the sampling changes nothing, or the pipeline does not draw what it says.
    """
    with effects.checked(pipeline, pipeline.transformer, sampling, len(prompts)):
        return _call(pipeline, seeds, sampling, output_type="np", **_texts(prompts, sampling))


def _texts(prompts, sampling):
    return {"prompt": list(prompts), "negative_prompt": [sampling["negative_prompt"]] * len(prompts)}


def _call(pipeline, seeds, sampling, **inputs):
    return pipelines.draw(
        pipeline,
        seeds,
        num_inference_steps=sampling["steps"],
        guidance_scale=sampling["guidance"],
        height=sampling["height"],
        width=sampling["width"],
        max_sequence_length=pipeline.max_sequence_length,
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
        return pipeline.encode_prompt(
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=sampling["guidance"] > 1,
            max_sequence_length=pipeline.max_sequence_length,
            **_texts(prompts, sampling),
        )

    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeddings = dict(zip(names, text(), strict=True))

    def denoise():
        return _call(pipeline, seeds, sampling, output_type="latent", **embeddings)

    latents = denoise()

    @torch.no_grad()
    def decode():
        config = pipeline.vae.config
        image = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        return pipeline.image_processor.postprocess(image, output_type="pt")

    return {"text": text, "denoise": denoise, "decode": decode}


def record(pipeline, prompts, seeds, calibration, steps):
    """Denoiser inputs that a float trajectory passes through, as of `recording.record`; with guidance the batch holds
    both branches, unconditional first."""
    return recording.record(pipeline, pipeline.transformer, generate, prompts, seeds, calibration, steps)


def blocks(denoiser):
    """Names of the transformer blocks, in execution order."""
    return [f"transformer_blocks.{i}" for i in range(len(denoiser.transformer_blocks))]


def quantizable(denoiser):
    """Names of the linear layers inside the blocks; embeddings and the output projection stay in 16 bit."""
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks.")
    ]


def segments(denoiser):
    """{layer: chunks} of the blocks' modulation layers."""
    found = architecture.segments(denoiser).items()
    return {name: chunks for name, chunks in found if name.startswith("transformer_blocks.")}


def stages(names):
    """Layers of one block in groups of which each reads what those before it have computed.

    Args:
        names: quantizable layers of the block, or chunks of them (NAME.0, ...).
    Raises:
        ValueError: a layer that no stage knows.
    """
    found = [[name for name in names if re.search(rf"(^|\.){stage}(\.\d+)?$", name)] for stage in STAGES]
    if unknown := set(names).difference(*found):
        raise ValueError(f"{min(unknown)}: of no stage of a block")
    return [stage for stage in found if stage]
