"""Denoiser inputs of a float trajectory, by the scheduler's steps: one way for all families of diffusers pipelines."""

import functools
import inspect
from contextlib import contextmanager

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models import denoiser_inputs
from quantwatt.models.family import Recorded


def record(pipeline, denoiser, generate, prompts, seeds, calibration, steps):
    """Denoiser inputs that a float trajectory passes through.

    Args:
        denoiser: the part of the pipeline whose inputs are kept.
        generate: the family's.
        calibration: the experiment's entry, a sampling in most.
        steps: step indices to keep, of the number of steps that calibration says.
    Returns:
        Recorded; inputs are named as `quantwatt.models.denoiser_inputs` says; with guidance the batch holds both
        branches one after the other, be it in one call of the denoiser or in two.
    Raises:
        DataError: the denoiser's calls do not hold the batch, or cannot be stored.
    """
    entry = {**calibration, "negative_prompt": ""}
    # A second number of samples tells what of a call is one row per sample.
    one_more = _first_arguments(denoiser, lambda: generate(pipeline, [*prompts, prompts[0]], [*seeds, seeds[0]], entry))
    evaluations, shared, calls, timesteps = 0, None, {step: [] for step in sorted(steps)}, {}

    def done():
        nonlocal evaluations
        evaluations += 1

    def keep(module, args, kwargs):
        nonlocal shared
        named, planned = arguments(module, args, kwargs), pipeline.scheduler.timesteps.tolist()
        shared = denoiser_inputs.shared(named, one_more) if shared is None else shared
        for step in calls:
            if evaluations == evaluation_of(step, calibration["steps"], planned):
                calls[step].append(_inputs(module, named, shared, len(prompts)))
                timesteps[step] = planned[evaluations]

    with denoiser.register_forward_pre_hook(keep, with_kwargs=True), after_each_step(pipeline.scheduler, done):
        generate(pipeline, prompts, seeds, entry)
    return Recorded({step: _together(found) for step, found in calls.items()}, timesteps)


def evaluation_of(step, steps, timesteps):
    """Index of a step's first evaluation among a scheduler's timesteps.

    A scheduler of higher order evaluates more often than it has steps, twice at one timestep (Heun) or also between
    two (KDPM2, the Runge-Kutta steps of PNDM); steps are then spread over its distinct timesteps, the first step at the
    first of them and the last at the last.

    Args:
        step: number of a step, from 0.
        steps: number of steps.
        timesteps: one per evaluation.
    """
    if len(timesteps) == steps:
        return step
    distinct = list(dict.fromkeys(timesteps))
    return timesteps.index(distinct[round(step * (len(distinct) - 1) / max(steps - 1, 1))])


class _Called(Exception):
    """Ends a pipeline's call where the denoiser's begins; holds the denoiser's arguments."""


def _first_arguments(denoiser, draw):
    """The arguments, as of `arguments`, of the denoiser's first call."""

    def stop(module, args, kwargs):
        raise _Called(arguments(module, args, kwargs))

    with denoiser.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            return draw()
        except _Called as call:
            return call.args[0]


@contextmanager
def after_each_step(scheduler, done):
    """While inside, `done()` is called whenever the scheduler has made the next sample."""
    step = scheduler.step

    @functools.wraps(step)
    def counted(*args, **kwargs):
        result = step(*args, **kwargs)
        done()
        return result

    before = vars(scheduler).get("step")
    scheduler.step = counted
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def arguments(denoiser, args, kwargs):
    """A call's arguments by keyword; what says nothing, or what the default says, is left out."""
    signature, named = inspect.signature(denoiser.forward), {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif name != "return_dict" and value is not signature.parameters[name].default:
            named[name] = value
    return named


def samples_of(named):
    """The number of samples of a call, which is the length of the denoiser's first input; None if that is no batch."""
    first = next(iter(named.values()), None)
    is_batch = isinstance(first, (list, tuple)) or (isinstance(first, torch.Tensor) and first.ndim > 0)
    return len(first) if is_batch else None


def _inputs(denoiser, named, shared, prompts):
    """One call's arguments as named tensors; `shared` as of `quantwatt.models.denoiser_inputs`."""
    count = samples_of(named)
    if not count or count % prompts:
        raise DataError(f"{type(denoiser).__name__}: its first input is not a batch of samples, so none can be kept.")
    return denoiser_inputs.flat(named, count, shared)


def _together(calls):
    """The inputs of one step's calls, one batch behind the other."""
    if not calls:
        raise DataError("the pipeline's scheduler does not make the steps that calibration asks for.")
    if len(calls) == 1:
        return calls[0]
    samples = [denoiser_inputs.of_sample(inputs, i) for inputs in calls for i in range(_count(inputs))]
    return denoiser_inputs.stack(samples)


def _count(inputs):
    return len(next(iter(inputs.values())))
