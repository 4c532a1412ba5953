"""FLIP (Andersson et al., 2020, doi 10.1145/3406183): the error that one sees when two images alternate, 0 to 1.

Of images in 8-bit sRGB, as NVIDIA's `flip-evaluator` computes it. Equations are numbered as in the paper.
"""

import functools
import math

import numpy as np

PIXELS_PER_DEGREE = 67.0  # the authors' default: a screen of 3840 pixels and 0.7 m, seen from 0.7 m
COLOUR_POWER, FEATURE_POWER = 0.7, 0.5  # q_c, q_f
KNEE, KNEE_AT = 0.95, 0.4  # p_t, p_c: where the error of colours is bent
FEATURE_WIDTH = 0.082  # degrees: of the edges and points that are looked for
# Contrast sensitivity (a1, b1, a2, b2) of the luminance, red-green and blue-yellow channels: equation 2.
SENSITIVITY = ((1, 0.0047, 0, 1e-5), (1, 0.0053, 0, 1e-5), (34.1, 0.04, 13.5, 0.025))
TO_XYZ = np.array(  # from linear sRGB
    [
        [10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794],
        [2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897],
        [1425032 / 73733382, 8788810 / 73733382, 70074185 / 73733382],
    ]
)
WHITE = TO_XYZ.sum(axis=1)
DELTA = 6 / 29  # of CIELAB's cube root


def flip(image: np.ndarray, reference: np.ndarray, pixels_per_degree: float = PIXELS_PER_DEGREE) -> float:
    """Mean over pixels of the error map; both arrays uint8 [h, w, 3] of the same shape."""
    one, other = (_opponent(_linear(pixels)) for pixels in (reference, image))
    colours = _colour_error(*(_seen(opponent, pixels_per_degree) for opponent in (one, other)))
    features = _feature_error(*((opponent[0] + 16) / 116 for opponent in (one, other)), pixels_per_degree)
    return float((colours ** (1 - features)).mean())


@functools.cache
def _table():
    """Linear values of the 256 levels of sRGB."""
    levels = np.arange(256) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _linear(pixels):  # [h, w, 3] -> [3, h, w]
    return _table()[pixels].transpose(2, 0, 1)


def _opponent(linear):
    """Linear YCxCz, a space of opponent colours: [3, h, w]."""
    x, y, z = np.tensordot(TO_XYZ, linear, 1) / WHITE[:, None, None]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _seen(opponent, pixels_per_degree):
    """What the eye sees of the details: filtered by contrast sensitivity, then CIELAB with Hunt's adjustment."""
    filtered = np.stack([_filtered(*pair, pixels_per_degree) for pair in zip(opponent, SENSITIVITY, strict=True)])
    y = (filtered[0] + 16) / 116
    xyz = np.stack([y + filtered[1] / 500, y, y - filtered[2] / 200]) * WHITE[:, None, None]
    linear = np.clip(np.tensordot(np.linalg.inv(TO_XYZ), xyz, 1), 0, 1)
    return _hunt(linear)


def _filtered(channel, sensitivity, pixels_per_degree):
    """A channel filtered by one or two Gaussians, with edges repeated; their sum is one."""
    largest = max(max(b1, b2) for _, b1, _, b2 in SENSITIVITY)
    radius = math.ceil(3 * math.sqrt(largest / (2 * math.pi**2)) * pixels_per_degree)
    degrees = np.arange(-radius, radius + 1) / pixels_per_degree
    total, found = 0.0, np.zeros_like(channel)
    for a, b in (sensitivity[:2], sensitivity[2:]):
        kernel = np.exp(-(math.pi**2) * degrees**2 / b)
        if height := a * math.sqrt(math.pi / b):
            found += height * _convolved(channel, kernel, kernel)
            total += height * kernel.sum() ** 2
    return found / total


def _convolved(channel, vertical, horizontal):
    from scipy.ndimage import correlate1d

    return correlate1d(correlate1d(channel, vertical, 0, mode="nearest"), horizontal, 1, mode="nearest")


def _hunt(linear):
    """CIELAB of linear sRGB [3, ...], its chroma scaled by the lightness."""
    xyz = np.tensordot(TO_XYZ, linear, 1) / WHITE.reshape(3, *[1] * (linear.ndim - 1))
    x, y, z = np.where(xyz > DELTA**3, np.cbrt(xyz), xyz / (3 * DELTA**2) + 4 / 29)
    lightness = 116 * y - 16
    return np.stack([lightness, 0.01 * lightness * 500 * (x - y), 0.01 * lightness * 200 * (y - z)])


def _distance(one, other):
    """HyAB: the distance of lightness plus that of chroma."""
    return np.abs(one[0] - other[0]) + np.hypot(one[1] - other[1], one[2] - other[2])


def _colour_error(one, other):
    green, blue = (_hunt(np.array(colour, float)) for colour in ([0, 1, 0], [0, 0, 1]))
    largest = _distance(green, blue) ** COLOUR_POWER
    knee, error = KNEE_AT * largest, _distance(one, other) ** COLOUR_POWER
    return np.where(error < knee, KNEE / knee * error, KNEE + (error - knee) / (largest - knee) * (1 - KNEE))


def _feature_error(one, other, pixels_per_degree):
    """The larger difference in the strength of edges or of points, of achromatic images [h, w]."""
    deviation = 0.5 * FEATURE_WIDTH * pixels_per_degree
    radius = math.ceil(3 * deviation)
    x = np.arange(-radius, radius + 1)
    gaussian = np.exp(-(x**2) / (2 * deviation**2))
    found = []
    for profile in (-x * gaussian, (x**2 / deviation**2 - 1) * gaussian):  # of edges, of points
        scale = gaussian.sum() * np.where(profile < 0, -profile[profile < 0].sum(), profile[profile > 0].sum())
        strengths = [
            np.hypot(_convolved(image, gaussian, profile / scale), _convolved(image, profile / scale, gaussian))
            for image in (one, other)
        ]
        found.append(np.abs(strengths[0] - strengths[1]))
    return (np.maximum(*found) / math.sqrt(2)) ** FEATURE_POWER
