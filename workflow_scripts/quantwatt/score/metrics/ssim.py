"""Structural similarity to the baseline's image of the same prompt and seed, computed by scikit-image."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.metrics import Score, Undefined, mean_over_images

UNIT = "1"
PACKAGE = "scikit-image"


WINDOW = 11  # pixels


def ssim(image: np.ndarray, baseline: np.ndarray) -> float:
    """SSIM of one 8-bit image, averaged over channels; both arrays uint8 [h, w, 3], at least 11 x 11 pixels.

    The window is from Wang et al., IEEE Transactions on Image Processing 13 (2004): Gaussian, sigma 1.5 pixels.
    """
    from skimage.metrics import structural_similarity

    return structural_similarity(
        image,
        baseline,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean SSIM over images; arguments as for `psnr.score`.

    Raises:
        Undefined: an image is smaller than the window.
    """
    values = []
    for image, baseline in zip(samples, compared, strict=True):
        height, width = image.shape[:2]
        if min(height, width) < WINDOW:
            raise Undefined(f"SSIM's window is {WINDOW} x {WINDOW} pixels, and images are {height} x {width}.")
        values.append(ssim(image, baseline))
    return mean_over_images(values, resamples, seed)
