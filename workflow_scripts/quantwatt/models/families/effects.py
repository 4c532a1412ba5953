"""Refuse keys of a sampling that do not change a pipeline's images, before images are generated."""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models.families import recording

NEUTRAL = (0, 1)  # values that mean no guidance
# Denoiser inputs through which guidance-distilled models get the guidance scale.
TOLD = ("guidance", "guidance_scale", "embedded_guidance", "timestep_cond")


@contextmanager
def checked(
    pipeline: Any, denoiser: torch.nn.Module, sampling: Mapping[str, Any], count: int
) -> Generator[None, None, None]:
    """Context in which the pipeline's call fails at its first step if a key of the sampling changes nothing.

    Guidance acts through a second branch, for which the denoiser evaluates more samples per step than there are images,
    or as an input of the denoiser. A negative prompt acts only through the second branch. A ValueError by which the
    pipeline refuses its arguments is raised as DataError.

    Args:
        sampling: steps, guidance, height, width, negative_prompt; missing keys are not checked.
        count: number of images of the call.
    Raises:
        DataError: names the key and what to set.
    """
    if getattr(denoiser, "_compiled_call_impl", None) is not None:  # a hook would make torch compile the denoiser again
        yield
        return
    check_size(pipeline, sampling)
    kind, seen = type(pipeline).__name__, {"samples": 0, "as_input": False, "steps": 0}

    def look(module, args, kwargs):
        if not seen["samples"]:
            _check_steps(kind, sampling, pipeline.scheduler)
        named = recording.arguments(module, args, kwargs)
        seen["samples"] += recording.samples_of(named) or 0
        seen["as_input"] |= any(named.get(name) is not None for name in TOLD)

    def done():
        seen["steps"] += 1
        if seen["steps"] == 1:
            # Perturbed-attention guidance adds a branch that uses neither guidance nor the negative prompt.
            perturbed = getattr(pipeline, "do_perturbed_attention_guidance", False)
            _check_branches(kind, sampling, seen["samples"] > count * (2 if perturbed else 1), seen["as_input"])

    with (
        denoiser.register_forward_pre_hook(look, with_kwargs=True),
        recording.after_each_step(pipeline.scheduler, done),
    ):
        try:
            yield
        except ValueError as error:  # raised by pipelines for invalid arguments
            if seen["samples"]:
                raise
            raise DataError(f"{kind} does not draw this: {' '.join(str(error).split())}") from error


def _check_branches(kind, sampling, branches, as_input):
    guidance, unwanted = sampling.get("guidance", 1), sampling.get("negative_prompt", "")
    if guidance not in NEUTRAL and not branches and not as_input:
        raise DataError(f"guidance: {guidance} changes nothing in the images of this {kind}; set 1, which is none.")
    if unwanted and not branches:
        raise DataError(
            f"negative_prompt: changes nothing in the images of this {kind} with guidance {guidance}; leave it out, or "
            "set a guidance above 1 that acts through a second branch."
        )


def _check_steps(kind, sampling, scheduler):
    """Refuse a number of steps that the scheduler changes; only higher-order schedulers have more evaluations."""
    planned, name = scheduler.timesteps, type(scheduler).__name__
    steps, levels = sampling.get("steps", len(planned)), scheduler.config.get("num_train_timesteps")
    higher = getattr(scheduler, "order", 1) > 1 or name == "PNDMScheduler"
    if len(planned) < steps or (len(planned) > steps and not higher):
        raise DataError(f"steps: {kind} with {name} takes {len(planned)} steps, not {steps}; set that.")
    if levels and not planned.is_floating_point() and planned.max() >= levels:
        raise DataError(f"steps: {name} would begin {steps} steps at {int(planned.max())}, above its {levels} levels.")


def check_size(pipeline: Any, sampling: Mapping[str, Any]) -> None:
    """Refuse a height or width that the pipeline would round.

    Raises:
        DataError: names the nearest sizes that are possible.
    """
    kind, sizes = type(pipeline).__name__, getattr(pipeline, "resolutions", None)
    wanted = tuple(sampling.get(key) for key in ("width", "height"))
    if sizes and None not in wanted and wanted not in sizes:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise DataError(f"width, height: {kind} draws {listed} pixels only, not {wanted[0]}x{wanted[1]}.")
    multiple = _multiple(pipeline)
    for key in ("height", "width"):
        if (size := sampling.get(key, multiple)) % multiple:
            below = size // multiple * multiple
            near = " or ".join(str(value) for value in (below, below + multiple) if value)
            raise DataError(f"{key}: {kind} draws multiples of {multiple} pixels; set {near}, not {size}.")


def _multiple(pipeline):
    """The number that heights and widths must be a multiple of: the autoencoder's factor times the patch size."""
    denoiser = getattr(pipeline, "transformer", None)
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None) or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    processor = getattr(getattr(pipeline, "image_processor", None), "config", {}).get("vae_scale_factor") or 1
    return math.lcm(getattr(pipeline, "vae_scale_factor", 1) * patch, processor)
