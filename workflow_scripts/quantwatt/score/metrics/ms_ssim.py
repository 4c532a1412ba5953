"""Multi-scale structural similarity to the baseline's image of the same prompt and seed (Wang et al., 2003)."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.metrics import Score, Undefined, mean_over_images

UNIT = "1"
PACKAGE = "scipy"

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first
WINDOW, DEVIATION = 11, 1.5  # pixels
SMALLEST = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # pixels of a side, so that the window fits the coarsest scale
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ms_ssim(image: np.ndarray, baseline: np.ndarray) -> float:
    """MS-SSIM of one 8-bit image, the mean over channels; both arrays uint8 [h, w, 3], of SMALLEST pixels at least.

    Negative similarities count as zero, as in pytorch-msssim.
    """
    one, other, product = image.astype(np.float64), baseline.astype(np.float64), np.ones(image.shape[2])
    for scale, weight in enumerate(WEIGHTS):
        luminance, structure = _similarities(one, other)
        last = scale == len(WEIGHTS) - 1
        similarity = (luminance * structure if last else structure).mean((0, 1))
        product *= np.maximum(similarity, 0) ** weight
        if not last:
            one, other = _halved(one), _halved(other)
    return float(product.mean())


def _similarities(one, other):
    """Maps of luminance and of contrast and structure, where the window is inside of the image: [h - 10, w - 10, 3]."""
    mean, mean_other = _smooth(one), _smooth(other)
    variance, variance_other = _smooth(one * one) - mean**2, _smooth(other * other) - mean_other**2
    covariance = _smooth(one * other) - mean * mean_other
    luminance = (2 * mean * mean_other + C1) / (mean**2 + mean_other**2 + C1)
    return luminance, (2 * covariance + C2) / (variance + variance_other + C2)


def _smooth(values):
    from scipy.ndimage import correlate1d

    kernel = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * DEVIATION**2))
    kernel, margin = kernel / kernel.sum(), WINDOW // 2
    return correlate1d(correlate1d(values, kernel, 0), kernel, 1)[margin:-margin, margin:-margin]


def _halved(values):
    """Means of 2 x 2 pixels; a side of an odd number of pixels is padded with zeros, as in pytorch-msssim."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((height % 2, 0), (width % 2, 0), (0, 0)))
    return padded.reshape(len(padded) // 2, 2, padded.shape[1] // 2, 2, -1).mean((1, 3))


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean MS-SSIM over images; arguments as for `psnr.score`.

    Raises:
        Undefined: an image is smaller than five scales of the window need.
    """
    values = []
    for image, baseline in zip(samples, compared, strict=True):
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST:
            raise Undefined(f"MS-SSIM needs {SMALLEST} x {SMALLEST} pixels, and images are {height} x {width}.")
        values.append(ms_ssim(image, baseline))
    return mean_over_images(values, resamples, seed)
