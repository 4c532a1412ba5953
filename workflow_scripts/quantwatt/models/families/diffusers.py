"""Any diffusers pipeline that draws images and whose denoiser is made of linear layers and convolutions."""

import inspect
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.models import architecture, denoiser_inputs
from quantwatt.models.families import effects, pipeline_classes, pipelines, recording
from quantwatt.models.family import ImageFamily

USUAL = ("transformer", "unet")  # the denoiser's name, where several parts take a timestep
# What a call takes besides, unless the model's `arguments` say otherwise: images are drawn in the size that is asked
# for, and of the prompts as they are written, whether or not a library that rewrites them is installed.
AS_WRITTEN = {"use_resolution_binning": False, "clean_caption": False}


class Family(ImageFamily):
    """Whatever pipeline the folder names; what its call takes is read from its signature."""

    def load(self, settings, location, denoiser=None):
        """As of Family.

        Raises:
            DataError: its call does not take one of the settings' `arguments`, or needs one that they do not have.
        """
        self.check(location)
        parts = {} if denoiser is None else {_stored_denoiser(location)[0]: denoiser}
        pipeline = pipelines.load("DiffusionPipeline", settings, location, **parts)
        _check_arguments(pipeline, settings["arguments"], location)
        pipeline.arguments = settings["arguments"]
        return pipeline

    def check(self, location):
        """Refuse a folder whose pipeline draws no images from prompts or classes alone; only model_index.json is read.

        Raises:
            DataError: names the pipeline's class and why.
        """
        pipeline_classes.check(pipeline_classes.of_folder(location), location)

    def load_denoiser(self, settings, location):
        name, kind = _stored_denoiser(location)
        return pipelines.load_denoiser(name, kind.__name__, settings, location)

    def meta_denoiser(self, location):
        """As of Family; what no file stores (position tables) is there."""
        from accelerate import init_empty_weights

        self.check(location)
        name, kind = _stored_denoiser(location)
        config = kind.load_config(location, subfolder=name, local_files_only=True)
        with init_empty_weights():
            return kind.from_config(config).eval()

    def generate(self, pipeline, prompts, seeds, sampling):
        """As of ImageFamily; of a pipeline of classes, a prompt is the number of one. Grey images repeat their channel.

        Noise comes from one CPU generator per prompt. What a sampling leaves out is the pipeline's own default.

        Raises:
            DataError: the pipeline cannot do what the sampling asks for.
        """
        with effects.checked(pipeline, _denoiser(pipeline), sampling, len(prompts)):
            images = pipelines.arrays(_call(pipeline, prompts, seeds, sampling))
        for key, drawn in (("height", images.shape[1]), ("width", images.shape[2])):
            if sampling.get(key, drawn) != drawn:
                raise DataError(
                    f"{key}: {type(pipeline).__name__} draws {drawn} pixels, and {sampling[key]} are asked for."
                )
        return images

    def prepare(self, pipeline, batch, seeds, settings):
        return lambda: _call(pipeline, batch, seeds, settings)

    def phases(self, pipeline, batch, seeds, settings):
        """{"whole"}: where one pipeline's text ends and its decoding begins, another's does not."""
        return {"whole": self.prepare(pipeline, batch, seeds, settings)}

    def record(self, pipeline, prompts, seeds, calibration, steps):
        return recording.record(pipeline, _denoiser(pipeline), self.generate, prompts, seeds, calibration, steps)

    def blocks(self, denoiser):
        return architecture.blocks(denoiser)

    def quantizable(self, denoiser):
        return architecture.quantizable(denoiser)

    def segments(self, denoiser):
        return architecture.segments(denoiser)


def _check_arguments(pipeline, arguments, location):
    said = {*pipeline_classes.SAID_BY_SAMPLING, _guidance_name(pipeline)}  # by a sampling
    free = [name for name in _parameters(pipeline) if name not in said]
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
        where: for messages.
    Raises:
        DataError: no part does, or several do and none of them has one of the USUAL names.
    """
    found = [
        name
        for name, kind in classes.items()
        if hasattr(kind, "forward")
        and any(map(denoiser_inputs.is_timestep, inspect.signature(kind.forward).parameters))
    ]
    usual = [name for name in USUAL if name in found]
    alike = [name for name in found if usual and classes[name] is classes[usual[0]]]
    if len(alike) > 1:
        raise DataError(f"{where}: two denoisers take turns ({', '.join(alike)}), and one alone can be quantized.")
    if len(found) != 1 and not usual:
        several = f"several parts take a timestep ({', '.join(found)})" if found else "no part takes a timestep"
        raise DataError(f"{where}: which part is the denoiser? {several}.")
    return found[0] if len(found) == 1 else usual[0]


def _call(pipeline, prompts, seeds, sampling):
    """The pipeline's own call, with what its signature has of a sampling: images [n, channels, height, width]."""
    takes, guidance = _parameters(pipeline), _guidance_name(pipeline)
    wanted = {
        "num_inference_steps": sampling.get("steps"),
        guidance: sampling.get("guidance"),
        "height": sampling.get("height"),
        "width": sampling.get("width"),
        "negative_prompt": [sampling.get("negative_prompt", "")] * len(prompts),
        **AS_WRITTEN,
    }
    if guidance not in takes and wanted[guidance] not in (None, 0, 1):
        raise DataError(f"guidance: {type(pipeline).__name__} has none, and {wanted[guidance]} is asked for.")
    if "negative_prompt" not in takes and any(wanted["negative_prompt"]):
        raise DataError(f"negative_prompt: {type(pipeline).__name__} takes none.")
    return pipelines.pictures(
        pipelines.draw(
            pipeline,
            seeds,
            **_subjects(pipeline, takes, prompts),
            **{name: value for name, value in wanted.items() if name in takes and value is not None}
            | pipeline.arguments,
            output_type="pt",
        )
    )


def _guidance_name(pipeline):
    """The name that the pipeline's call has for guidance.

    It is `true_cfg_scale` where it guides by a second branch by default, unless the model was trained to be told how
    much; else `guidance_scale`.
    """
    by_branch = _parameters(pipeline).get("true_cfg_scale")
    if by_branch is None or by_branch.default <= 1:
        return "guidance_scale"
    return "guidance_scale" if getattr(_denoiser(pipeline).config, "guidance_embeds", False) else "true_cfg_scale"


def _subjects(pipeline, takes, prompts):
    """What a batch is to show, as the pipeline's call takes it."""
    if "prompt" in takes:
        return {"prompt": list(prompts)}
    if "class_labels" not in takes:
        return {"batch_size": len(prompts)}
    if unread := [prompt for prompt in prompts if not prompt.strip().isdecimal()]:
        raise DataError(f"prompts: {type(pipeline).__name__} takes numbers of classes, and '{unread[0]}' is none.")
    return {"class_labels": [int(prompt) for prompt in prompts]}


def _parameters(pipeline):
    return inspect.signature(type(pipeline).__call__).parameters


def _denoiser(pipeline):
    parts = pipeline.components.items()
    kinds = {name: type(part) for name, part in parts if type(part).__module__.startswith("diffusers.")}
    return getattr(pipeline, _denoiser_of(kinds, type(pipeline).__name__))
