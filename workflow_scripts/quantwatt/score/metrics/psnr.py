"""Peak signal-to-noise ratio to the baseline's image of the same prompt and seed."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.metrics import Score, mean_over_images

UNIT = "dB"
PACKAGE = "numpy"


def psnr(image: np.ndarray, baseline: np.ndarray) -> float:
    """PSNR in dB of one 8-bit image; both arrays uint8 [h, w, 3] of the same shape.

    Equal images have no finite PSNR. They get the PSNR of a difference of one level in a single value, the largest
    finite PSNR of images of this size: 89 dB at 64 x 64.
    """
    error = np.square(image.astype(np.float64) - baseline).sum()
    return 10 * np.log10(255**2 * image.size / max(error, 1.0))


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean PSNR over images.

    Args:
        samples, compared: iterables of uint8 [h, w, 3], image i of both with the same prompt and seed.
        resamples: bootstrap resamples over images (10000).
    """
    values = [psnr(image, baseline) for image, baseline in zip(samples, compared, strict=True)]
    return mean_over_images(values, resamples, seed)
