"""What the families of diffusers pipelines have in common. Classes are named, so that diffusers is imported late."""

import inspect
from pathlib import Path
from types import ModuleType

import torch

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)
from quantwatt.models import model_folder, seeding

IMAGE_FIELDS = ("images", "image")  # of pipelines' outputs


def load(kind, settings, location, **parts):
    """A pipeline of a class on the CPU, in the model's type, with some parts in place of the stored ones.

    Parts whose weights are stored as a variant only (model.fp16.safetensors) are read from it. Its attribute `censor`
    says what became of the network that blackens images: None where it has none, else "not loaded" or, where its class
    cannot do without, "loaded".
    """
    import diffusers

    listed = manifest.read_json(Path(location) / model_folder.PIPELINE)
    without = _without_censor(listed["_class_name"] if kind == "DiffusionPipeline" else kind)
    for name, part in model_folder.weighted_parts(location, settings, without={**without, **parts}).items():
        if part.weights.variant:
            parts[name] = _stored(part_class(part), settings, part.folder, variant=part.weights.variant)
    pipeline = _stored(getattr(diffusers, kind), settings, location, **without, **parts)
    pipeline.set_progress_bar_config(disable=True)
    has_one = any(listed.get("safety_checker") or ())
    pipeline.censor = ("not loaded" if without else "loaded") if has_one else None
    return pipeline


def _without_censor(kind):
    """What a class of pipelines is loaded with so that no image is blackened: a black one says nothing of a format."""
    import diffusers

    found = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    optional = getattr(found, "_optional_components", ())
    if (
        "safety_checker" not in optional
        or "requires_safety_checker" not in inspect.signature(found.__init__).parameters
    ):
        return {}
    # The extractor reads images for the checker alone, and need not be there without it.
    parts = {name: None for name in ("safety_checker", "feature_extractor") if name in optional}
    return {**parts, "requires_safety_checker": False}


def load_denoiser(part, kind, settings, location):
    """A pipeline's denoiser alone, on the CPU, in the model's type: the part of that name, of a class."""
    import diffusers

    variant = model_folder.weights(Path(location) / part, "diffusers", kind, settings).variant
    return _stored(getattr(diffusers, kind), settings, location, subfolder=part, variant=variant).eval()


def part_class(part):
    """The class of a pipeline's part: diffusers', transformers', or one of a pipeline's module of diffusers.

    Args:
        part: `quantwatt.models.model_folder.Part`.
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
    _hide_bars()
    dtype = getattr(torch, settings["dtype"])
    return kind.from_pretrained(location, dtype=dtype, local_files_only=True, use_safetensors=True, **options)


def _hide_bars():
    """One for every part that is loaded, among ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def draw(pipeline, seeds, **arguments):
    """What a pipeline's call returns for a batch, as a function of the batch's seeds.

    Latents, and with most schedulers every further noise, come from one CPU generator per image: image i is the same
    for every method, device and batch. A scheduler that is not given them (DDPM in DiT's pipeline, SD3's with
    `stochastic_sampling`) draws from the global generators, which begin anew with every batch, at what follows from its
    first seed: image i is then the same for every method, in a batch of the same images on a device of the same kind.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with seeding.seeded(seeds[0]):
        return pipeline(generator=generators, **arguments)


def pictures(output):
    """The images of a pipeline's output, whatever its field is called.

    Raises:
        DataError: the output has none.
    """
    for field in IMAGE_FIELDS:
        if hasattr(output, field):
            return getattr(output, field)
    raise DataError(f"the pipeline gives {', '.join(output.keys())}, and no images.")


def arrays(images):
    """Images [n, channels, height, width] of any type and device as [n, height, width, 3] float32.

    Grey repeats its channel.
    Pipelines are asked for tensors and not for arrays, which some make of their own type: numpy has no bfloat16.
    """
    found = images.float().cpu().permute(0, 2, 3, 1).numpy()
    return found.repeat(3, axis=-1) if found.shape[-1] == 1 else found
