"""Any diffusers pipeline that generates images and whose denoiser consists of linear layers and convolutions."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quantwatt.artifacts import instructions, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.data import photographs
from quantwatt.models import adapters, architecture, denoiser_inputs, model_folder
from quantwatt.models.families import effects, pipeline_classes, pipelines, recording
from quantwatt.models.family import ImageFamily, Pipeline, Recorded, Run, Settings
from quantwatt.models.sampling import Drawing

# Further arguments of a call, unless the model's `arguments` override them: images have exactly the requested size, and
# prompts are used unchanged, whether or not a library that rewrites them is installed.
AS_WRITTEN = {"use_resolution_binning": False, "clean_caption": False, "_auto_resize": False}


class Family(ImageFamily):
    """Runs the pipeline that the folder names; the arguments of its call are read from its signature."""

    def load(
        self,
        settings: Settings,
        location: str | Path,
        denoiser: torch.nn.Module | None = None,
        **components: torch.nn.Module,
    ) -> Pipeline:
        """See Family.

        Raises:
            DataError: the pipeline's call does not take one of the settings' `arguments`.
        """
        self.check(location)
        parts = components if denoiser is None else {**components, _stored_denoiser(location)[0]: denoiser}
        pipeline = pipelines.load("DiffusionPipeline", settings, location, **parts)
        _check_arguments(pipeline, settings["arguments"], location)
        pipeline.arguments = settings["arguments"]
        if denoiser is None and settings.get("adapters"):
            adapters.fuse(_denoiser(pipeline), settings["adapters"])
        return pipeline

    def check(self, location: str | Path) -> None:
        """Refuse a pipeline that cannot generate images from only prompts or classes; reads model_index.json alone.

        Raises:
            DataError: names the pipeline's class and why.
        """
        pipeline_classes.check(pipeline_classes.of_folder(location), location)

    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        name, kind = _stored_denoiser(location)
        return adapters.fuse(pipelines.load_denoiser(name, kind.__name__, settings, location), settings.get("adapters"))

    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        """See Family; buffers that no file stores (position tables) are computed."""
        from accelerate import init_empty_weights

        self.check(location)
        name, kind = _stored_denoiser(location)
        config = kind.load_config(location, subfolder=name, local_files_only=True)
        with init_empty_weights():
            return kind.from_config(config).eval()

    def denoiser_name(self, location: str | Path) -> str:
        return _stored_denoiser(location)[0]

    def denoiser(self, pipeline: Pipeline) -> torch.nn.Module:
        return _denoiser(pipeline)

    def generate(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> np.ndarray:
        """See ImageFamily; class-conditional pipelines take class numbers as prompts. Grey images repeat their channel.

        Noise comes from one CPU generator per prompt. Keys that are None get the pipeline's defaults. A prompt's input
        picture is scaled and cropped to the image's size.

        Raises:
            DataError: the pipeline does not support a key of the sampling, or there are several input pictures: some
                pipelines would take them all for each prompt.
        """
        if len(instructions.pictures(prompts)) > 1:
            raise DataError(
                f"prompts: {type(pipeline).__name__} is given one input picture at a time; set batch_size: 1."
            )
        return self._draw(pipeline, prompts, seeds, drawing)

    def _draw(self, pipeline, prompts, seeds, drawing):
        with effects.checked(pipeline, _denoiser(pipeline), drawing, len(prompts)):
            call = _call(pipeline, prompts, seeds, drawing, _image_type(pipeline))
            images = pipelines.arrays(call())
        for key, drawn in (("height", images.shape[1]), ("width", images.shape[2])):
            if (asked := getattr(drawing, key)) not in (None, drawn):
                raise DataError(f"{key}: {type(pipeline).__name__} draws {drawn} pixels, and {asked} are asked for.")
        return images

    def prepare(self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing) -> Run:
        return _call(pipeline, batch, seeds, drawing)

    def phases(
        self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> dict[str, Run]:
        """{"whole"}: the boundaries between text encoding, denoising and decoding differ between pipelines."""
        return {"whole": self.prepare(pipeline, batch, seeds, drawing)}

    def record(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing, steps: set[int]
    ) -> Recorded:
        return recording.record(pipeline, _denoiser(pipeline), self._draw, prompts, seeds, drawing, steps)

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.blocks(denoiser)

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.quantizable(denoiser)

    def segments(self, denoiser: torch.nn.Module) -> dict[str, int]:
        return architecture.segments(denoiser)


def _check_arguments(pipeline, arguments, location):
    reserved = {*pipeline_classes.SAID_BY_SAMPLING, _guidance_name(pipeline)}  # a sampling sets these
    free = [name for name in _parameters(pipeline) if name not in reserved]
    if unknown := sorted(arguments.keys() - free):
        kind = type(pipeline).__name__
        raise DataError(f"{location}: arguments: {kind} does not take '{unknown[0]}' (it takes {', '.join(free)}).")


def _stored_denoiser(location):
    """(name, class) of the denoiser of a pipeline's folder, from its model_index.json."""
    import diffusers

    listed = manifest.read_json(Path(location) / "model_index.json")
    parts = {name: value for name, value in listed.items() if isinstance(value, list) and value[0] == "diffusers"}
    classes = {name: getattr(diffusers, kind, None) for name, (_, kind) in parts.items()}
    name = _denoiser_of(classes, location)
    return name, classes[name]


def _denoiser_of(classes, where):
    """The name of the part that takes a timestep.

    Args:
        classes: {name: class} of a pipeline's parts.
        where: the folder or class, for messages.
    Raises:
        DataError: no part takes a timestep, or several parts do: none with a usual name, or two of one class.
    """
    candidates = [
        name
        for name, kind in classes.items()
        if hasattr(kind, "forward")
        and any(map(denoiser_inputs.is_timestep, inspect.signature(kind.forward).parameters))
    ]
    usual = [name for name in model_folder.DENOISERS if name in candidates]
    alike = [name for name in candidates if usual and classes[name] is classes[usual[0]]]
    if len(alike) > 1:
        raise DataError(f"{where}: two denoisers take turns ({', '.join(alike)}), and one alone can be quantized.")
    if len(candidates) != 1 and not usual:
        several = (
            f"several parts take a timestep ({', '.join(candidates)})" if candidates else "no part takes a timestep"
        )
        raise DataError(f"{where}: which part is the denoiser? {several}.")
    return candidates[0] if len(candidates) == 1 else usual[0]


def _image_type(pipeline):
    """How to ask a pipeline for images in 0..1.

    Some that read prompts leave tensors as their decoder gives them, in -1..1 (Kandinsky 3). Some that read none make
    arrays of the model's dtype, and numpy has no bfloat16 (DDPM).
    """
    return "np" if "prompt" in _parameters(pipeline) else "pt"


def _call(pipeline, prompts, seeds, drawing, image_type="pt"):
    """A function that calls the pipeline with the keys of a sampling that its signature takes.

    Returns:
        a function of nothing; it returns images as the pipeline's `output_type` gives them: by default a tensor
        [n, channels, height, width].
    """
    takes, guidance = _parameters(pipeline), _guidance_name(pipeline)
    wanted = {
        "num_inference_steps": drawing.steps,
        guidance: drawing.guidance,
        "height": drawing.height,
        "width": drawing.width,
        "max_area": drawing.height and drawing.width and drawing.height * drawing.width,
        "negative_prompt": [drawing.negative_prompt] * len(prompts),
        **AS_WRITTEN,
    }
    if guidance not in takes and wanted[guidance] not in (None, 0, 1):
        raise DataError(f"guidance: {type(pipeline).__name__} has none, and {wanted[guidance]} is asked for.")
    if "negative_prompt" not in takes and any(wanted["negative_prompt"]):
        raise DataError(f"negative_prompt: {type(pipeline).__name__} takes none.")
    asked = {name: value for name, value in wanted.items() if name in takes and value is not None}
    asked |= _subjects(pipeline, takes, prompts) | _input_picture(pipeline, prompts, drawing) | pipeline.arguments
    return lambda: pipelines.pictures(pipelines.draw(pipeline, seeds, **asked, output_type=image_type))


def _guidance_name(pipeline):
    """The name of the guidance argument of the pipeline's call.

    It is `true_cfg_scale` where the pipeline evaluates a second branch by default, unless the model is
    guidance-distilled and takes the guidance as an input; else `guidance_scale`.
    """
    by_branch = _parameters(pipeline).get("true_cfg_scale")
    if by_branch is None or by_branch.default <= 1:
        return "guidance_scale"
    return "guidance_scale" if getattr(_denoiser(pipeline).config, "guidance_embeds", False) else "true_cfg_scale"


def _subjects(pipeline, takes, prompts):
    """The arguments of the pipeline's call that condition a batch: prompts, class numbers, or only its size."""
    if "prompt" in takes:
        return {"prompt": list(prompts)}
    if "class_labels" not in takes:
        return {"batch_size": len(prompts)}
    if unread := [prompt for prompt in prompts if not prompt.strip().isdecimal()]:
        raise DataError(f"prompts: {type(pipeline).__name__} takes numbers of classes, and '{unread[0]}' is none.")
    return {"class_labels": [int(prompt) for prompt in prompts]}


def _input_picture(pipeline, prompts, drawing):
    """The argument of the pipeline's call with the prompts' input pictures; {} for prompts without."""
    kind, paths = type(pipeline), instructions.pictures(prompts)
    if not pipeline_classes.takes_picture("image", kind):
        return {}
    if not paths and pipeline_classes.is_needed("image", kind):
        raise DataError(
            f"prompts: {kind.__name__} changes a picture; give the prompts as a table with the columns prompt and "
            "input_image."
        )
    size = None if None in (drawing.width, drawing.height) else (drawing.width, drawing.height)
    pictures = [Image.fromarray(photographs.picture(path, size)) for path in paths]
    return {"image": pictures if len(pictures) > 1 else pictures[0]} if pictures else {}


def _parameters(pipeline):
    return inspect.signature(type(pipeline).__call__).parameters


def _denoiser(pipeline):
    parts = pipeline.components.items()
    kinds = {name: type(part) for name, part in parts if type(part).__module__.startswith("diffusers.")}
    return getattr(pipeline, _denoiser_of(kinds, type(pipeline).__name__))
