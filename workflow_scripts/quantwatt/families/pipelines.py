"""What the families of diffusers pipelines have in common. Classes are named, so that diffusers is imported late."""

import inspect
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from quantwatt import (
    model_folder,
    torchvision_ops,  # noqa: F401  (before diffusers)
)
from quantwatt.manifest import DataError


def load(kind, settings, location, **parts):
    """A pipeline of a class on the CPU, in the model's type, with some parts in place of the stored ones.

    Those whose weights are stored as a variant only (model.fp16.safetensors) are read from it.
    """
    import diffusers

    for name, part in model_folder.weighted_parts(location, settings, without=parts).items():
        if part.weights.variant:
            parts[name] = _stored(part_class(part), settings, part.folder, variant=part.weights.variant)
    pipeline = _stored(getattr(diffusers, kind), settings, location, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_denoiser(part, kind, settings, location):
    """A pipeline's denoiser alone, on the CPU, in the model's type: the part of that name, of a class."""
    import diffusers

    variant = model_folder.weights(Path(location) / part, "diffusers", kind, settings).variant
    return _stored(getattr(diffusers, kind), settings, location, subfolder=part, variant=variant).eval()


def part_class(part):
    """The class of a pipeline's part: diffusers', transformers', or one of a pipeline's module of diffusers.

    Args:
        part: `quantwatt.model_folder.Part`.
    Raises:
        DataError: the installed versions have no such class, or it needs a package that is missing.
    """
    import diffusers
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}.get(part.library)
    module = module or getattr(diffusers.pipelines, part.library, None)
    try:
        found = getattr(module, part.kind, None) if isinstance(module, ModuleType) else None
    except ImportError as error:  # a module of transformers whose packages are missing
        raise DataError(f"{part.folder}: {part.kind} cannot be imported ({str(error).splitlines()[0]}).") from error
    if not inspect.isclass(found):
        versions = f"diffusers {diffusers.__version__} and transformers {transformers.__version__}"
        raise DataError(
            f"{part.folder}: {part.kind} of '{part.library}' is not in {versions}; "
            "install the versions that the model was saved with, or newer ones."
        )
    return found


def meta_denoiser(part, kind, location):
    """Its architecture on the meta device."""
    import diffusers

    denoiser = getattr(diffusers, kind)
    config = denoiser.load_config(location, subfolder=part, local_files_only=True)
    with torch.device("meta"):
        return denoiser.from_config(config).eval()


def _stored(kind, settings, location, **options):
    """What is stored in a folder, of a class of diffusers or transformers, in the model's type."""
    dtype = getattr(torch, settings["dtype"])
    return kind.from_pretrained(location, dtype=dtype, local_files_only=True, use_safetensors=True, **options)


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
