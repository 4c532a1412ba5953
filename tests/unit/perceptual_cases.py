"""Images and random weights that are the same everywhere, for recorded values of other libraries."""

import numpy as np

SIZES = {"small": (64, 80), "large": (168, 176)}  # the second for MS-SSIM, which needs 161 pixels
NETWORKS = {"lpips": ("alex", "alexnet"), "lpips-vgg": ("vgg", "vgg16"), "lpips-squeeze": ("squeeze", "squeezenet1_1")}


def pairs(size):
    """Three pairs of images uint8 [h, w, 3], of small, visible and large errors."""
    rng = np.random.default_rng(3)
    height, width = SIZES[size]
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3))
    for deviation in (2, 15, 70):
        image = np.kron(coarse, np.ones((8, 8, 1)))
        other = np.clip(image + rng.normal(0, deviation, image.shape), 0, 255)
        yield image.astype(np.uint8), other.round().astype(np.uint8)


def weights(shapes):
    """{name: float32 array} of a network whose activations neither vanish nor grow, from {name: shape}."""
    rng = np.random.default_rng(4)
    found = {}
    for name, shape in sorted(shapes.items()):
        inputs = np.prod(shape[1:]) if len(shape) > 1 else 100
        found[name] = (rng.standard_normal(shape, np.float32) * (2 / inputs) ** 0.5).astype(np.float32)
    return found


def features():
    """Features of generated images [90, 6] and of a reference [120, 6]."""
    rng = np.random.default_rng(5)
    return 0.8 * rng.standard_normal((90, 6)) + 0.3, rng.standard_normal((120, 6))
