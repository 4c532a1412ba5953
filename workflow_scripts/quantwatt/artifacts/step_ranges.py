"""Ranges of a drawing's denoising steps: consecutive, each of a number of steps; one may take what the others leave.

Steps are counted as a sampling counts them: a scheduler of higher order evaluates the denoiser several times a step.
"""

import bisect
import itertools
from collections.abc import Sequence

from quantwatt.artifacts.errors import DataError


def counts(ranges: Sequence[int | None], steps: int) -> list[int]:
    """Return the steps that each range takes of a drawing.

    Args:
        ranges: numbers of steps; at most one is None and takes the steps that the others leave, at least one.
        steps: of the drawing.
    Raises:
        DataError: the ranges do not fit into the drawing.
    """
    rest = steps - sum(filter(None, ranges))
    if None in ranges and rest < 1:
        raise DataError(f"its ranges take {steps - rest} steps beside the rest, and a drawing of {steps} leaves none")
    if None not in ranges and rest:
        raise DataError(f"its ranges take {steps - rest} steps, and a drawing has {steps}")
    return [rest if count is None else count for count in ranges]


def range_of(step: int, taken: Sequence[int]) -> int:
    """Return the index of the range in which a step lies, counted from 0; `taken` as `counts` returns."""
    return min(bisect.bisect_right(list(itertools.accumulate(taken)), step), len(taken) - 1)


def equal(parts: int, steps: int) -> list[int]:
    """Return the steps of each of several ranges of a drawing that are as equal as whole steps can be."""
    ends = [round(part * steps / parts) for part in range(parts + 1)]
    return [stop - start for start, stop in itertools.pairwise(ends)]


def average(values: Sequence[float], taken: Sequence[int]) -> float:
    """Return the mean over a drawing's steps of a figure that each range has."""
    return sum(value * count for value, count in zip(values, taken, strict=True)) / sum(taken)


def words(ranges: Sequence[int | None]) -> list[str]:
    """Name each range by its steps, counted from 1: "steps 1-3", "steps 4 to the last 3", "the last 2 steps"."""
    named, rest = [], None
    for index, count in enumerate(ranges):
        first, after = sum(filter(None, ranges[:index])) + 1, sum(filter(None, ranges[index + 1 :]))
        if count is None:
            rest = index
            named.append(f"steps {first} to the last" + (f" but {after}" if after else ""))
        elif rest is None:
            named.append(f"step {first}" if count == 1 else f"steps {first}-{first + count - 1}")
        else:
            last = f"the last {count + after}" if count + after > 1 else "the last step"
            named.append(last if not after else f"{last} but {after}")
    return named
