"""Where the images of a set are, and the parts that jobs of their own may make of it.

An image has its place by its number in the whole set, and parts begin at whole batches: in however many parts a set is
made, its files are the same, under the same names.
"""

from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError

SHARD_IMAGES = 256  # in one folder


def image_name(number: int) -> str:
    """The file of an image, in its set's folder."""
    return f"shard-{number // SHARD_IMAGES:03d}/{number:05d}.png"


def part_number(first: int) -> str:
    """The digits by which a part is named whose first image has this number."""
    return f"{first:05d}"


def part_name(first: int) -> str:
    """The JSON file that vouches for the part of a set whose first image has this number."""
    return f"part-{part_number(first)}.json"


def parts(sampling: Mapping[str, Any], images_per_job: int) -> list[range]:
    """The ranges of image numbers that jobs make.

    A part but the last is as many whole batches as hold `images_per_job` images, whatever the set's size: a set that
    grows keeps the parts that are full.

    Args:
        sampling: {"images", "batch_size", ...}.
    Returns:
        list of range.
    """
    size = _part_size(sampling, images_per_job)
    return [range(first, min(first + size, sampling["images"])) for first in range(0, sampling["images"], size)]


def count(sampling: Mapping[str, Any], images_per_job: int) -> int:
    """How many ranges `parts` returns."""
    return -(-sampling["images"] // _part_size(sampling, images_per_job))


def _part_size(sampling, images_per_job):
    """Images of a full part: whole batches."""
    batch = sampling["batch_size"]
    return -(-images_per_job // batch) * batch


def check_start(part: range, batch_size: int) -> None:
    """Refuse a part that begins inside a batch.

    Raises:
        DataError: its batches would be others than those of the whole set.
    """
    if part.start % batch_size:
        raise DataError(
            f"a part of an image set begins at image {part.start}, inside a batch of {batch_size}: images could differ "
            f"from those of the whole set; begin at a multiple of {batch_size}."
        )
