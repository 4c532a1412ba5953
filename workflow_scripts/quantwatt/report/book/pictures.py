"""Small pictures: made for a bundle, and taken from one of a stranger."""

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import verify_files
from quantwatt.report.book import LARGEST_SIDE
from quantwatt.report.book.parsing import reason_of


def small(manifest: str | Path, image: Mapping[str, Any], side: int) -> bytes:
    """An image of a set as PNG of at most `side` pixels, without anything that its file says beside its pixels.

    PNG, because a lossy format would add artefacts of its own to those of quantizing. A smaller image keeps its size.

    Args:
        manifest: of the image set; image: one of its entries.
    Raises:
        DataError: the file is not the one that the manifest lists, or no image.
    """
    verify_files(manifest, {image["file"]: image})
    path = Path(manifest).parent / image["file"]
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({reason_of(error)}).") from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return as_png(picture, optimize=True)


def as_png(picture: Image.Image, optimize: bool = False) -> bytes:
    """The pixels of an RGB picture as PNG; its colour profile, comments and dates stay behind."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def accepted(data: bytes, where: str) -> bytes:
    """A stranger's PNG, decoded and written anew, so that what is embedded holds pixels and nothing else.

    Args:
        where: names file and entry in messages.
    Raises:
        DataError: it is no PNG, is broken, or has more than LARGEST_SIDE pixels a side.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            width, height = opened.size  # of the header: nothing is decoded yet
            if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
                raise DataError(f"{where}: {width}×{height} pixels; at most {LARGEST_SIDE} a side are read.")
            if getattr(opened, "n_frames", 1) != 1:
                raise DataError(f"{where}: is animated.")
            return as_png(opened.convert("RGB"))
    except (
        OSError, SyntaxError, ValueError, EOFError, OverflowError, zlib.error, Image.DecompressionBombError
    ) as error:  # fmt: skip
        raise DataError(f"{where}: not a PNG image that can be read ({reason_of(error)}).") from error
