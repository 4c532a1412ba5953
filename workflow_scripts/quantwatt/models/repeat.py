"""Whether a pipeline draws one image per seed: a batch drawn twice is compared."""

import numpy as np

from quantwatt.artifacts.errors import DataError

# What the second draw errs by is in every figure that a method gets against the baseline. Errors of 60 dB add .04 dB to
# a PSNR of 40 dB and .4 dB to one of 50 dB, where no format of fewer bits is; another noise is below 20 dB.
LEAST_PSNR = 60.0


def check(images, again, seeds, where):
    """How far apart two draws of one batch from the same seeds are.

    Args:
        images, again: uint8 [n, height, width, 3].
        seeds: of the n images.
        where: what was drawn and by what, for the message.
    Returns:
        The least PSNR in dB of an image that differs; None where all are equal.
    Raises:
        DataError: it is below LEAST_PSNR, which is no rounding on a GPU: there is no image of a seed to compare with.
    """
    differing = [i for i in range(len(images)) if not np.array_equal(images[i], again[i])]
    if not differing:
        return None
    found = {i: _psnr(images[i], again[i]) for i in differing}
    worst = min(found, key=lambda number: found[number])
    if found[worst] < LEAST_PSNR:
        levels = int(np.abs(images[worst].astype(int) - again[worst]).max())
        raise DataError(
            f"{where}: image {worst} drawn twice from seed {seeds[worst]} is not the same image (PSNR "
            f"{found[worst]:.1f} dB, {levels} of 255 levels apart; {LEAST_PSNR:.0f} dB are needed): something draws "
            "noise that no seed reaches, or computes in another order each time; try another scheduler in the model's "
            "scheduler/scheduler_config.json, and where the difference is small dtype: float32."
        )
    return float(found[worst])


def _psnr(image, again):
    """In dB, of images that differ. Not the metric's: its module would then draw all images anew when it changes."""
    return 10 * np.log10(255**2 / np.square(image.astype(np.float64) - again).mean())
