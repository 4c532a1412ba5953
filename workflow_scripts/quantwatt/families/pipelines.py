"""What the families of diffusers pipelines have in common. Classes are named, so that diffusers is imported late."""

from contextlib import contextmanager

import torch

from quantwatt import torchvision_ops  # noqa: F401  (before diffusers)


def load(kind, settings, location, **parts):
    """A pipeline of a class on the CPU, in the model's type, with some parts in place of the stored ones."""
    pipeline = _stored(kind, settings, location, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_denoiser(part, kind, settings, location):
    """A pipeline's denoiser alone, on the CPU, in the model's type: the part of that name, of a class."""
    return _stored(kind, settings, location, subfolder=part).eval()


def meta_denoiser(part, kind, location):
    """Its architecture on the meta device."""
    import diffusers

    denoiser = getattr(diffusers, kind)
    config = denoiser.load_config(location, subfolder=part, local_files_only=True)
    with torch.device("meta"):
        return denoiser.from_config(config).eval()


def _stored(kind, settings, location, **options):
    import diffusers

    _hide_bars()
    dtype = getattr(torch, settings["dtype"])
    return getattr(diffusers, kind).from_pretrained(
        location, dtype=dtype, local_files_only=True, use_safetensors=True, **options
    )


def _hide_bars():
    """One for every part that is loaded, among ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def recorded(denoiser, steps, named):
    """A mapping {step: {name: tensor}} that inputs of the denoiser are put into while inside, one call a step.

    Args:
        steps: numbers of the calls to keep.
        named: named(args, kwargs) -> {name: tensor [batch, ...]} of a call.
    """
    kept, step = {}, 0

    def keep(module, args, kwargs):
        nonlocal step
        if step in steps:
            kept[step] = {name: tensor.detach().clone() for name, tensor in named(args, kwargs).items()}
        step += 1

    with denoiser.register_forward_pre_hook(keep, with_kwargs=True):
        yield kept


def arrays(images):
    """Images [n, channels, height, width] of any type and device as [n, height, width, 3] float32; grey repeats its
    channel.

    Pipelines are asked for tensors and not for arrays, which some make of their own type: numpy has no bfloat16.
    """
    found = images.float().cpu().permute(0, 2, 3, 1).numpy()
    return found.repeat(3, axis=-1) if found.shape[-1] == 1 else found
