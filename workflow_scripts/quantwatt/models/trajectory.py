"""Keep a few values of each image's latents behind every denoising step, for distances between two trajectories.

All latents of 5,000 images of 1024 x 1024 in 20 steps are 13 gigabytes. A drawing without replacement of `values`
places, the same for every method, is enough: the mean square over the places is the mean square over all up to a
relative deviation of about sqrt(2 / values). Where there are fewer values than places asked for, all are kept.
"""

import functools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from quantwatt.artifacts.errors import DataError

SEED = 20_240_517  # of the places; another one makes trajectories of other sets incomparable


class Recorder:
    """Latents behind each step of the drawing that runs.

    Args:
        values: number of places that are kept of each image's latents.
    """

    def __init__(self, values: int):
        self.values = values
        self.steps: list[np.ndarray] = []  # [images, values] of each step
        self.kept: dict[int, np.ndarray] = {}  # {seed: [steps, values] float32}

    @contextmanager
    def drawing(self, scheduler: Any, seeds: Sequence[int]) -> Generator[None, None, None]:
        """Context of the drawing of a batch, one image of each seed.

        Raises:
            DataError: the pipeline's scheduler gives no latents of each image.
        """
        step, before, self.steps = scheduler.step, vars(scheduler).get("step"), []

        @functools.wraps(step)
        def recorded(*args, **kwargs):
            result = step(*args, **kwargs)
            self._keep(result[0] if isinstance(result, tuple) else result.prev_sample, len(seeds))
            return result

        scheduler.step = recorded
        try:
            yield
        finally:
            if before is None:
                del scheduler.step
            else:
                scheduler.step = before
        if not self.steps:
            raise DataError("trajectory: the pipeline takes no steps of its scheduler, so no latents can be kept.")
        self.kept |= dict(zip(seeds, np.stack(self.steps, axis=1), strict=True))

    def _keep(self, latents, images):
        if len(latents) != images:
            raise DataError(f"trajectory: the scheduler's latents are of {len(latents)} images, not {images}.")
        flat = latents.detach().flatten(1)  # [images, all values]
        self.steps.append(flat[:, places(flat.shape[1], self.values).to(flat.device)].float().cpu().numpy())


@functools.cache
def places(size: int, values: int) -> torch.Tensor:
    """The places that are kept of `size` values, rising: int64 [min(size, values)]."""
    if values >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(SEED))[:values].sort().values
