"""Check that a pipeline generates the same image twice from one seed: a batch is generated twice and compared."""

from collections.abc import Sequence

import numpy as np

from quantwatt.artifacts.errors import DataError

# Differences between two runs are part of every comparison of a method with the baseline. Differences of 60 dB change a
# PSNR of 40 dB by 0.04 dB and a PSNR of 50 dB by 0.4 dB; no low-bit format reaches 50 dB. Images from different noise
# have a PSNR below 20 dB.
LEAST_PSNR = 60.0


def check(images: np.ndarray, again: np.ndarray, seeds: Sequence[int], where: str) -> float | None:
    """Compare two generations of one batch from the same seeds.

    Args:
        images, again: uint8 [n, height, width, 3].
        seeds: of the n images.
        where: model, method and sampling of the images, for the message.
    Returns:
        The lowest PSNR in dB among images that differ; None where all are equal.
    Raises:
        DataError: the PSNR is below LEAST_PSNR. Rounding on a GPU does not explain that: the seed does not determine
            the image, so methods cannot be compared.
    """
    differing = [i for i in range(len(images)) if not np.array_equal(images[i], again[i])]
    if not differing:
        return None
    psnr = {i: _psnr(images[i], again[i]) for i in differing}
    worst = min(psnr, key=lambda number: psnr[number])
    if psnr[worst] < LEAST_PSNR:
        levels = int(np.abs(images[worst].astype(int) - again[worst]).max())
        raise DataError(
            f"{where}: image {worst} drawn twice from seed {seeds[worst]} is not the same image (PSNR "
            f"{psnr[worst]:.1f} dB, {levels} of 255 levels apart; {LEAST_PSNR:.0f} dB are needed): something draws "
            "noise that no seed reaches, or computes in another order each time; try another scheduler in the model's "
            "scheduler/scheduler_config.json, and where the difference is small dtype: float32."
        )
    return float(psnr[worst])


def _psnr(image, again):
    """PSNR in dB of images that differ. Not imported from the metric: a change of it would regenerate all images."""
    return 10 * np.log10(255**2 / np.square(image.astype(np.float64) - again).mean())
