"""Load all images of a small set into one array, for tests."""

import numpy as np

from quantwatt.artifacts.images import iterate_images


def read_images(manifest_path):
    """uint8 [n, h, w, 3]; raises as `iterate_images`."""
    return np.stack(list(iterate_images(manifest_path)))
