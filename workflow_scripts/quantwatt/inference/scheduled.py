"""Layers that compute in another format in each range of a drawing's steps, and what tells them which step it is.

The steps are those that the scheduler of the pipeline takes: how often a step calls the denoiser (guidance in two
calls, several batches) does not matter, and the next drawing begins anew.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from quantwatt.artifacts import step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.models.families.recording import steps_of


class ScheduledLayer(torch.nn.Module):
    """A layer in several variants, of which one computes in each range of steps.

    variants: modules that take the same inputs; ranges: index of the variant of each range.
    """

    def __init__(self, variants: Iterable[torch.nn.Module], ranges: Sequence[int]):
        super().__init__()
        self.variants, self.ranges = torch.nn.ModuleList(variants), list(ranges)
        self.enter(0)

    def enter(self, index: int) -> None:
        """Compute in the variant of a range from now on."""
        # Not as a submodule, which would be listed twice.
        self.__dict__["active"] = self.variants[self.ranges[index]]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.active(inputs)

    def __getattr__(self, name):
        """Return the active variant's attributes, which pipelines read (in_features, the dtype of the weight)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["active"], name)


def layers_of(denoiser: torch.nn.Module) -> list[ScheduledLayer]:
    """Return the layers of a denoiser that have variants."""
    return [layer for layer in denoiser.modules() if isinstance(layer, ScheduledLayer)]


def enter(layers: Iterable[ScheduledLayer], index: int) -> None:
    """Let some layers compute in their variants of a range."""
    for layer in layers:
        layer.enter(index)


def require_all_steps(pipeline: Any) -> None:
    """Refuse a pipeline whose drawings leave out steps of the scheduler's plan.

    Raises:
        DataError: it is one of image-to-image, which begins behind the first steps by its `strength`.
    """
    if "strength" in inspect.signature(type(pipeline).__call__).parameters:
        raise DataError(
            f"schedule: {type(pipeline).__name__} begins behind the first steps, by its strength; quantize without one."
        )


def follow(scheduler: Any, ranges: Sequence[int | None], enter: Callable[[int], object]) -> None:
    """Call enter(range) whenever a drawing begins and whenever a step of it enters another range; changes `scheduler`.

    Args:
        scheduler: of diffusers, which plans its evaluations by `set_timesteps` and does each by `step`.
        ranges: steps of each range; None takes the rest, see `quantwatt.artifacts.step_ranges`.
    Raises:
        DataError: of the next drawing, where the ranges do not fit into its steps.
    """
    set_timesteps, step = scheduler.set_timesteps, scheduler.step
    planned, evaluations = [], 0  # range of each evaluation of this drawing, and how many are done

    @functools.wraps(set_timesteps)
    def begin(*args, **kwargs):
        nonlocal planned, evaluations
        result = set_timesteps(*args, **kwargs)
        planned, evaluations = _planned(scheduler, ranges), 0
        enter(planned[0])
        return result

    @functools.wraps(step)
    def done(*args, **kwargs):
        nonlocal evaluations
        result = step(*args, **kwargs)
        before, evaluations = evaluations, min(evaluations + 1, len(planned) - 1)
        if planned[evaluations] != planned[before]:
            enter(planned[evaluations])
        return result

    scheduler.set_timesteps, scheduler.step = begin, done


def _planned(scheduler, ranges):
    """The range of each evaluation that a scheduler plans."""
    timesteps = scheduler.timesteps.tolist()
    steps = getattr(scheduler, "num_inference_steps", None) or len(timesteps)
    try:
        taken = step_ranges.counts(ranges, steps)
    except DataError as error:
        raise DataError(f"schedule: {error}; draw with another number of steps.") from error
    return [step_ranges.range_of(step, taken) for step in steps_of(timesteps, steps)]
