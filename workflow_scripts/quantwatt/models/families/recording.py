"""Record denoiser inputs along the unquantized model's trajectory, for all families of diffusers pipelines."""

import bisect
import functools
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models import denoiser_inputs
from quantwatt.models.family import Pipeline, Recorded
from quantwatt.models.sampling import Drawing


def record(
    pipeline: Pipeline,
    denoiser: torch.nn.Module,
    generate: Callable[[Pipeline, Sequence[str], Sequence[int], Drawing], object],
    prompts: Sequence[str],
    seeds: Sequence[int],
    drawing: Drawing,
    steps: set[int],
) -> Recorded:
    """Record denoiser inputs along the trajectory of the unquantized model.

    Args:
        denoiser: the part of the pipeline whose inputs are recorded.
        generate: the family's method.
        drawing: `quantwatt.models.sampling.Drawing`; its negative prompt is not used.
        steps: indices of the steps to record, below the drawing's number of steps.
    Returns:
        Recorded; inputs are named as in `quantwatt.models.denoiser_inputs`; with guidance the batch holds both branches
        one after the other, whether the denoiser is called once or twice per step.
    Raises:
        DataError: the denoiser's first input is not a batch, or a call cannot be stored.
    """
    drawing, further = replace(drawing, negative_prompt=""), ([*prompts, prompts[0]], [*seeds, seeds[0]])
    # Another number of samples shows which arguments have one row per sample.
    one_more = _first_arguments(denoiser, lambda: generate(pipeline, *further, drawing))
    evaluations, shared, calls, timesteps = 0, None, {step: [] for step in sorted(steps)}, {}

    def done():
        nonlocal evaluations
        evaluations += 1

    def keep(module, args, kwargs):
        nonlocal shared
        named, planned = arguments(module, args, kwargs), timesteps_of(pipeline)
        shared = denoiser_inputs.shared(named, one_more) if shared is None else shared
        for step in calls:
            if evaluations == evaluation_of(step, drawing.steps or len(planned), planned):
                calls[step].append(_inputs(module, named, shared, len(prompts)))
                timesteps[step] = planned[evaluations]

    with denoiser.register_forward_pre_hook(keep, with_kwargs=True), after_each_step(pipeline.scheduler, done):
        generate(pipeline, prompts, seeds, drawing)
    return Recorded({step: _together(inputs) for step, inputs in calls.items()}, timesteps)


def timesteps_of(pipeline: Pipeline) -> list[float]:
    """The timesteps of a call that has begun; image-to-image begins behind the scheduler's first ones."""
    planned = pipeline.scheduler.timesteps.tolist()
    return planned[-(getattr(pipeline, "num_timesteps", None) or len(planned)) :]


def evaluation_of(step: int, steps: int, timesteps: Sequence[float]) -> int:
    """Index of a step's first evaluation among a scheduler's timesteps.

    A higher-order scheduler has more evaluations than steps, twice at one timestep (Heun) or also between two timesteps
    (KDPM2, the Runge-Kutta steps of PNDM). Steps are then spread evenly over its distinct timesteps, from the first to
    the last. So they are where image-to-image has fewer evaluations than steps.

    Args:
        step: number of a step, from 0.
        steps: number of steps.
        timesteps: one per evaluation.
    """
    if len(timesteps) == steps:
        return step
    distinct = list(dict.fromkeys(timesteps))
    return timesteps.index(distinct[round(step * (len(distinct) - 1) / max(steps - 1, 1))])


def steps_of(timesteps: Sequence[float], steps: int) -> list[int]:
    """Return the step of each evaluation that a scheduler plans, the inverse of `evaluation_of`.

    Evaluations at one timestep are of one step, and those between two steps' timesteps are of the earlier step.
    """
    if len(timesteps) == steps:
        return list(range(steps))
    distinct = list(dict.fromkeys(timesteps))
    places = [distinct.index(timesteps[evaluation_of(step, steps, timesteps)]) for step in range(steps)]
    return [max(bisect.bisect_right(places, distinct.index(timestep)) - 1, 0) for timestep in timesteps]


class _Called(Exception):
    """Ends a pipeline's call before the denoiser's first call; holds the denoiser's arguments."""


def _first_arguments(denoiser, draw):
    """The arguments of the denoiser's first call, as `arguments` returns them."""

    def stop(module, args, kwargs):
        raise _Called(arguments(module, args, kwargs))

    with denoiser.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            return draw()
        except _Called as call:
            return call.args[0]


@contextmanager
def after_each_step(scheduler: Any, done: Callable[[], object]) -> Generator[None, None, None]:
    """Context in which `done()` is called after each `step` of the scheduler."""
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


def arguments(denoiser: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by keyword, without `return_dict` and without arguments that are the default."""
    signature, named = inspect.signature(denoiser.forward), {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif name != "return_dict" and value is not signature.parameters[name].default:
            named[name] = value
    return named


def samples_of(named: Mapping[str, Any]) -> int | None:
    """The number of samples of a call: the length of the denoiser's first input, or None if it is no batch."""
    first = next(iter(named.values()), None)
    is_batch = isinstance(first, (list, tuple)) or (isinstance(first, torch.Tensor) and first.ndim > 0)
    return len(first) if is_batch else None


def _inputs(denoiser, named, shared, prompts):
    """One call's arguments as named tensors; `shared`: see `quantwatt.models.denoiser_inputs`."""
    count = samples_of(named)
    if not count or count % prompts:
        raise DataError(f"{type(denoiser).__name__}: its first input is not a batch of samples, so none can be kept.")
    return denoiser_inputs.flat(named, count, shared)


def _together(calls):
    """Concatenate the inputs of one step's calls."""
    if not calls:
        raise DataError("the pipeline's scheduler does not make the steps that calibration asks for.")
    if len(calls) == 1:
        return calls[0]
    samples = [denoiser_inputs.of_sample(inputs, i) for inputs in calls for i in range(_count(inputs))]
    return denoiser_inputs.stack(samples)


def _count(inputs):
    return len(next(iter(inputs.values())))
