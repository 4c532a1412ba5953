"""Any diffusers pipeline that draws images and whose denoiser is made of linear layers and convolutions."""

import functools
import inspect
from contextlib import contextmanager
from pathlib import Path

import torch

from quantwatt import denoiser_inputs, manifest
from quantwatt.architecture import blocks, quantizable, segments  # noqa: F401  (the family's own)
from quantwatt.families import pipelines
from quantwatt.manifest import DataError

USUAL = ("transformer", "unet")  # the denoiser's name, where several parts take a timestep
OWN = {"prompt", "class_labels", "batch_size", "negative_prompt", "num_inference_steps", "guidance_scale", "height",
       "width", "generator", "output_type", "return_dict", "self"}  # fmt: skip


def load(settings, location, denoiser=None):
    """The whole pipeline on the CPU, with `denoiser` in place of the stored one if given.

    Raises:
        DataError: its call does not take one of the settings' `arguments`, or needs one that they do not have.
    """
    parts = {} if denoiser is None else {_stored_denoiser(location)[0]: denoiser}
    pipeline = pipelines.load("DiffusionPipeline", settings, location, **parts)
    _check_arguments(pipeline, settings["arguments"], location)
    pipeline.arguments = settings["arguments"]
    return pipeline


def _check_arguments(pipeline, arguments, location):
    free = {name: parameter for name, parameter in _parameters(pipeline).items() if name not in OWN}
    kind = type(pipeline).__name__
    if unknown := sorted(arguments.keys() - free.keys()):
        raise DataError(f"{location}: arguments: {kind} does not take '{unknown[0]}' (it takes {', '.join(free)}).")
    for name, parameter in free.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in arguments:
            raise DataError(f"{location}: {kind} needs '{name}', and draws nothing from prompts or classes alone.")


def load_denoiser(settings, location):
    """The denoiser alone, on the CPU, in the model's type."""
    name, kind = _stored_denoiser(location)
    return pipelines.load_denoiser(name, kind.__name__, settings, location)


def meta_denoiser(location):
    """The denoiser's architecture: parameters on the meta device; what no file stores (position tables) is there."""
    from accelerate import init_empty_weights

    name, kind = _stored_denoiser(location)
    config = kind.load_config(location, subfolder=name, local_files_only=True)
    with init_empty_weights():
        return kind.from_config(config).eval()


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
        and any(p.startswith("timestep") for p in inspect.signature(kind.forward).parameters)
    ]
    usual = [name for name in USUAL if name in found]
    if len(found) != 1 and not usual:
        several = f"several parts take a timestep ({', '.join(found)})" if found else "no part takes a timestep"
        raise DataError(f"{where}: which part is the denoiser? {several}.")
    return found[0] if len(found) == 1 else usual[0]


def generate(pipeline, prompts, seeds, sampling):
    """Images of one batch of prompts; of a pipeline of classes, a prompt is the number of one.

    Noise comes from one CPU generator per prompt, so that image i is the same function of its seed for every method,
    device and batch. What a sampling leaves out is the pipeline's own default.

    Returns:
        [n, height, width, 3] float32 in 0..1 (NaN where the model produced NaN); grey images repeat their channel.
    Raises:
        DataError: the pipeline cannot do what the sampling asks for.
    """
    images = pipelines.arrays(_call(pipeline, prompts, seeds, sampling))
    for key, drawn in (("height", images.shape[1]), ("width", images.shape[2])):
        if sampling.get(key, drawn) != drawn:
            raise DataError(
                f"{key}: {type(pipeline).__name__} draws {drawn} pixels, and {sampling[key]} are asked for."
            )
    return images


def _call(pipeline, prompts, seeds, sampling):
    """The pipeline's own call, with what its signature has of a sampling: images [n, channels, height, width]."""
    takes = _parameters(pipeline)
    asked = {
        "num_inference_steps": sampling.get("steps"),
        "guidance_scale": sampling.get("guidance"),
        "height": sampling.get("height"),
        "width": sampling.get("width"),
        "negative_prompt": [sampling.get("negative_prompt", "")] * len(prompts),
    }
    if "guidance_scale" not in takes and asked["guidance_scale"] not in (None, 0, 1):
        raise DataError(f"guidance: {type(pipeline).__name__} has none, and {asked['guidance_scale']} is asked for.")
    if "negative_prompt" not in takes and any(asked["negative_prompt"]):
        raise DataError(f"negative_prompt: {type(pipeline).__name__} takes none.")
    return pipelines.draw(
        pipeline,
        seeds,
        **_subjects(pipeline, takes, prompts),
        **{name: value for name, value in asked.items() if name in takes and value is not None},
        output_type="pt",
        **pipeline.arguments,
    ).images


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


def prepare(pipeline, prompts, seeds, sampling):
    """A function that draws one batch of images and leaves them on the device."""
    return lambda: _call(pipeline, prompts, seeds, sampling)


def phases(pipeline, prompts, seeds, sampling):
    """{"whole"}: where one pipeline's text ends and its decoding begins, another's does not."""
    return {"whole": prepare(pipeline, prompts, seeds, sampling)}


def record(pipeline, prompts, seeds, calibration, steps):
    """Denoiser inputs that a float trajectory passes through.

    Args:
        steps: step indices to keep.
    Returns:
        {step: {input name: tensor [batch, ...]}}, named as `quantwatt.denoiser_inputs` says; with guidance the batch
        holds both branches one after the other, be it in one call of the denoiser or in two.
    Raises:
        DataError: the denoiser's calls do not hold the batch, or cannot be stored.
    """
    denoiser = getattr(pipeline, _denoiser_of(_modules(pipeline), type(pipeline).__name__))
    entry = {**calibration, "negative_prompt": ""}
    one_more = _first_arguments(pipeline, denoiser, [*prompts, prompts[0]], [*seeds, seeds[0]], entry)
    evaluations, shared, calls = 0, None, {step: [] for step in steps}

    def done():
        nonlocal evaluations
        evaluations += 1

    def keep(module, args, kwargs):
        nonlocal shared
        named = _named(module, args, kwargs)
        shared = denoiser_inputs.shared(named, one_more) if shared is None else shared
        # A scheduler of higher order evaluates more often than it has steps; the first evaluation of a step is kept.
        planned = len(pipeline.scheduler.timesteps)
        for step in steps:
            if evaluations == step * planned // calibration["steps"]:
                calls[step].append(_inputs(module, named, shared, len(prompts)))

    with denoiser.register_forward_pre_hook(keep, with_kwargs=True), _after_each_step(pipeline.scheduler, done):
        generate(pipeline, prompts, seeds, entry)
    return {step: _together(found) for step, found in calls.items()}


class _Called(Exception):
    """Ends a pipeline's call where the denoiser's begins; holds the denoiser's arguments."""


def _first_arguments(pipeline, denoiser, prompts, seeds, sampling):
    """The arguments, as of `_named`, of the denoiser's first call."""

    def stop(module, args, kwargs):
        raise _Called(_named(module, args, kwargs))

    with denoiser.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            return generate(pipeline, prompts, seeds, sampling)
        except _Called as call:
            return call.args[0]


def _modules(pipeline):
    parts = pipeline.components.items()
    return {name: type(part) for name, part in parts if type(part).__module__.startswith("diffusers.")}


@contextmanager
def _after_each_step(scheduler, done):
    """While inside, `done()` is called whenever the scheduler has made the next sample."""
    step = scheduler.step

    @functools.wraps(step)
    def counted(*args, **kwargs):
        result = step(*args, **kwargs)
        done()
        return result

    scheduler.step = counted
    try:
        yield
    finally:
        del scheduler.step


def _named(denoiser, args, kwargs):
    """A call's arguments by keyword; what says nothing, or what the default says, is left out."""
    signature, named = inspect.signature(denoiser.forward), {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif name != "return_dict" and value is not signature.parameters[name].default:
            named[name] = value
    return named


def _inputs(denoiser, named, shared, prompts):
    """One call's arguments as named tensors; `shared` as of `quantwatt.denoiser_inputs`."""
    first = next(iter(named.values()))
    if not isinstance(first, torch.Tensor) or first.ndim == 0 or len(first) % prompts:
        raise DataError(f"{type(denoiser).__name__}: its first input is not a batch of samples, so none can be kept.")
    return denoiser_inputs.flat(named, len(first), shared)


def _together(calls):
    """The inputs of one step's calls, one batch behind the other."""
    if not calls:
        raise DataError("the pipeline's scheduler does not make the steps that calibration asks for.")
    if any(inputs.keys() != calls[0].keys() for inputs in calls):
        raise DataError("the denoiser is called with other inputs for one branch of guidance than for the other.")
    return {name: torch.cat([inputs[name] for inputs in calls]) for name in calls[0]}
