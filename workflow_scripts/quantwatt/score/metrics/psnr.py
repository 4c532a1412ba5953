"""Peak signal-to-noise ratio to the baseline's image of the same prompt and seed."""

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_mean
from quantwatt.score.metrics import Score

UNIT = "dB"
PACKAGE = "numpy"


def psnr(image, baseline):
    """PSNR in dB of one 8-bit image; both uint8 of one shape, [h, w, 3].

    Equal images have no finite PSNR. They count as if one single value differed by one level, which is the
    largest PSNR that images of this size can otherwise have: 89 dB at 64 x 64.
    """
    error = np.square(image.astype(np.float64) - baseline).sum()
    return 10 * np.log10(255**2 * image.size / max(error, 1.0))


def score(samples, compared, resamples=None, seed=0):
    """Mean over images of the PSNR of each.

    Args:
        samples, compared: iterables of uint8 [h, w, 3], image i of both from the same prompt and seed.
        resamples: bootstrap resamples over images (10000).
    """
    values = [psnr(image, baseline) for image, baseline in zip(samples, compared, strict=True)]
    resamples = RESAMPLES if resamples is None else resamples
    return Score(*bootstrap_mean(values, resamples, seed), resamples)
