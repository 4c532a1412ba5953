"""scikit-learn's handwritten digits as images: 1,797 of 8 x 8 pixels and 17 levels (UCI; Alpaydin, Kaynak 1998)."""

import numpy as np
from PIL import Image

IMAGE_SIZE = 16  # pixels; SSIM's window is 11 wide
CLASSES = 10
COUNT = 1797
HELD_OUT = 360  # images that neither the embedded model nor the classifier was trained on
SPLIT_SEED = 0


def dataset(held: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The digits, resized to 16 x 16 pixels by PIL's bicubic filter.

    Args:
        held: True for the images held out of training, False for the training images, None for all.
    Returns:
        (uint8 [n, 16, 16, 3], classes 0 to 9 [n]), in a fixed shuffled order.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(COUNT)
    chosen = {None: order, True: order[:HELD_OUT], False: order[HELD_OUT:]}[held]
    levels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
    grey = np.stack([_enlarged(picture) for picture in levels])
    return np.repeat(grey[..., None], 3, axis=-1), digits.target[chosen]


def _enlarged(picture):
    return np.asarray(Image.fromarray(picture).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
