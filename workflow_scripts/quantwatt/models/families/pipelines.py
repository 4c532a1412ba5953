"""Load and call diffusers pipelines, for all their families. Classes are given by name: diffusers is imported late."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from quantwatt.artifacts import instructions, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import lean_imports, torchvision_ops  # noqa: F401  (the second before diffusers)
from quantwatt.models import model_folder, seeding

IMAGE_FIELDS = ("images", "image")  # fields of pipelines' outputs that hold images


def load(kind: str, settings: Mapping[str, Any], location: str | Path, **parts: Any) -> Any:
    """Load a pipeline on the CPU, in the model's dtype; the parts that are given replace the stored ones.

    Parts that are stored only as a variant (model.fp16.safetensors) are read from the variant. The pipeline gets an
    attribute `censor` about the safety checker, which blackens images: None where the pipeline has none, else "not
    loaded" or, where its class requires a checker, "loaded".
    """
    lean_imports.load(f"diffusers.{kind}")
    import diffusers

    listed = manifest.read_json(Path(location) / model_folder.PIPELINE)
    without = _without_censor(listed["_class_name"] if kind == "DiffusionPipeline" else kind)
    for name, part in model_folder.weighted_parts(location, settings, without={**without, **parts}).items():
        if part.weights and part.weights.variant:
            parts[name] = load_part(part, settings)
    pipeline = _stored(getattr(diffusers, kind), settings, location, **without, **parts)
    pipeline.set_progress_bar_config(disable=True)
    has_checker = any(listed.get("safety_checker") or ())
    pipeline.censor = ("not loaded" if without else "loaded") if has_checker else None
    return pipeline


def _without_censor(kind):
    """Arguments that load a pipeline class without its safety checker: blackened images cannot be compared."""
    import diffusers

    pipeline_class = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    optional = getattr(pipeline_class, "_optional_components", ())
    if (
        "safety_checker" not in optional
        or "requires_safety_checker" not in inspect.signature(pipeline_class.__init__).parameters
    ):
        return {}
    # The feature extractor serves only the checker and is not needed without it.
    parts = {name: None for name in ("safety_checker", "feature_extractor") if name in optional}
    return {**parts, "requires_safety_checker": False}


def load_denoiser(part: str, kind: str, settings: Mapping[str, Any], location: str | Path) -> torch.nn.Module:
    """Load only a pipeline's denoiser, on the CPU, in the model's dtype; `part` is its name, `kind` its class."""
    lean_imports.load(f"diffusers.{kind}")
    import diffusers

    variant = model_folder.weights(Path(location) / part, "diffusers", kind, settings).variant
    return _stored(getattr(diffusers, kind), settings, location, subfolder=part, variant=variant).eval()


def load_part(part: model_folder.Part, settings: Mapping[str, Any]) -> torch.nn.Module:
    """Load one part of a pipeline, on the CPU, in the model's dtype."""
    variant = part.weights.variant if part.weights else None
    return _stored(part_class(part), settings, part.folder, variant=variant)


def part_class(part: model_folder.Part) -> type:
    """The class of a pipeline's part: from diffusers, transformers, or a pipeline's module of diffusers.

    Args:
        part: `quantwatt.models.model_folder.Part`.
    Raises:
        DataError: the installed versions do not have the class, or it needs a package that is missing.
    """
    import diffusers
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}.get(part.library)
    module = module or getattr(diffusers.pipelines, part.library, None)
    try:
        part_type = getattr(module, part.kind, None) if isinstance(module, ModuleType) else None
    except ImportError as error:  # a module of transformers whose packages are missing
        raise DataError(f"{part.folder}: {part.kind} cannot be imported ({str(error).splitlines()[0]}).") from error
    if not inspect.isclass(part_type):
        versions = f"diffusers {diffusers.__version__} and transformers {transformers.__version__}"
        raise DataError(
            f"{part.folder}: {part.kind} of '{part.library}' is not in {versions}; "
            "install the versions that the model was saved with, or newer ones."
        )
    return part_type


def meta_denoiser(part: str, kind: str, location: str | Path) -> torch.nn.Module:
    """The denoiser's architecture on the meta device."""
    lean_imports.load(f"diffusers.{kind}")
    import diffusers

    denoiser = getattr(diffusers, kind)
    config = denoiser.load_config(location, subfolder=part, local_files_only=True)
    with torch.device("meta"):
        return denoiser.from_config(config).eval()


def _stored(kind, settings, location, **options):
    """Load a class of diffusers or transformers from a folder, in the model's dtype."""
    _hide_bars()
    dtype = getattr(torch, settings["dtype"])
    return kind.from_pretrained(location, dtype=dtype, local_files_only=True, use_safetensors=True, **options)


def _hide_bars():
    """Hide the libraries' progress bars: they would show one per loaded part, between quantwatt's bars."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def draw(pipeline: Any, seeds: Sequence[int], **arguments: Any) -> Any:
    """Call a pipeline for one batch; its output depends only on the batch's seeds.

    Latents, and with most schedulers all further noise, come from one CPU generator per image: image i is the same for
    every method, device and batch. Some schedulers do not get these generators (DDPM in DiT's pipeline, SD3's with
    `stochastic_sampling`) and draw from the global generators, which are seeded for every batch with a hash of its
    first seed: image i is then the same for every method, if the batch and the kind of device are the same.

    Raises:
        DataError: the prompts have input pictures that the arguments lack.
    """
    if instructions.pictures(arguments.get("prompt", ())) and "image" not in arguments:
        raise DataError(f"prompts: {type(pipeline).__name__} takes no input pictures, and these prompts have them.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with seeding.seeded(seeds[0]):
        return pipeline(generator=generators, **arguments)


def pictures(output: Any) -> torch.Tensor | np.ndarray:
    """The images of a pipeline's output, from whichever of IMAGE_FIELDS it has.

    Raises:
        DataError: the output has no images.
    """
    for field in IMAGE_FIELDS:
        if hasattr(output, field):
            return getattr(output, field)
    raise DataError(f"the pipeline gives {', '.join(output.keys())}, and no images.")


def arrays(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """Convert images to [n, height, width, 3] float32; grey ones repeat their channel.

    Args:
        images: a tensor [n, channels, height, width] of any dtype and device, or an array [n, height, width, channels].
    Raises:
        DataError: pixels lie outside of 0..1.
    """
    pixels = images if isinstance(images, np.ndarray) else images.float().cpu().permute(0, 2, 3, 1).numpy()
    if (pixels < 0).any() or (pixels > 1).any():  # False for NaN
        low, high = np.nanmin(pixels), np.nanmax(pixels)
        raise DataError(f"the pipeline gives pixels from {low:.2f} to {high:.2f}, and not from 0 to 1.")
    return pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels
