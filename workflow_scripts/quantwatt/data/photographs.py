"""Read real images from folders and ZIP archives, in the same way as clean-fid.

clean-fid (arXiv 2104.11222) uses PIL's conversion to RGB for all images. This module does the same with one exception:
Pillow clips 16-bit grey values at 255, which makes nearly the whole image white (python-pillow/Pillow#3011); here they
are scaled. Other unusual properties are counted in a record, which is printed once and goes into the manifest.
"""

import contextlib
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # clean-fid's, of images
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # PIL's modes
ORIENTATION = 0x0112  # EXIF; 1 is upright
NAMED = 5  # number of files of one kind that a sentence names
KINDS = {  # {kind: property of an image, and how it is handled}
    "alpha": "with transparency, which is dropped, as clean-fid does",
    "sixteen_bit": "of 16-bit greys, scaled to 8 bits",
    "cmyk": "in CMYK, converted without a colour profile, as clean-fid does",
    "turned": "that EXIF says to turn, read as they are stored, as clean-fid does",
    "frames": "of several frames, of which the first is read",
    "enlarged": "smaller than the size asked for, enlarged",
    "one_colour": "of one single colour",
    "alpha_only": "of one single colour once their transparency is dropped: their content is in it alone",
}


class Record:
    """Statistics of reading images: their number, and for each of KINDS a count and the names of the first files."""

    def __init__(self, source: Path) -> None:
        self.source, self.read, self.left_out = source, 0, Counter()
        self.names = {kind: [] for kind in KINDS}
        self.counts = Counter()

    def add(self, name: str, kinds: Iterable[str]) -> None:
        self.read += 1
        for kind in kinds:
            self.counts[kind] += 1
            if len(self.names[kind]) < NAMED:
                self.names[kind].append(name)

    def described(self) -> dict[str, Any]:
        """The record as JSON."""
        kinds = {kind: {"count": self.counts[kind], "first": self.names[kind]} for kind in KINDS if self.counts[kind]}
        return {"read": self.read, "left_out": dict(sorted(self.left_out.items())), **kinds}

    def sentences(self) -> list[str]:
        """The record in words, one sentence per kind."""
        sentences = []
        if self.left_out:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
            sentences.append(f"{self.source}: left out: {kinds}.")
        for kind, words in KINDS.items():
            if count := self.counts[kind]:
                names = ", ".join(self.names[kind]) + (", ..." if count > NAMED else "")
                sentences.append(f"{self.source}: {count} of {self.read} pictures {words} ({names}).")
        return sentences


@contextlib.contextmanager
def opened(source: str | Path) -> Generator[tuple[list[str], Callable[[str], IO[bytes]], Record], None, None]:
    """Open a folder (links are followed) or a ZIP archive of images.

    Hidden files, and the folder __MACOSX that macOS adds to archives, are left out.

    Yields:
        (sorted names, a function that opens a file by its name, a `Record` that counts the files left out).
    Raises:
        DataError: the source is neither a folder nor a ZIP archive, a link is broken, or an archive has two files of
            one name.
    """
    source = Path(source)
    record = Record(source)
    if not source.is_file():
        names = [path.removeprefix(f"{source}/") for path in linked_folders.files(source)]
        yield _pictures(names, record), lambda name: _open(source / name), record
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: neither a folder nor a ZIP archive of images.") from error
    with archive:
        names = _pictures([name for name in archive.namelist() if not name.endswith("/")], record)
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{source}: holds two files called {twice[0]}; make the archive anew.")
        yield names, archive.open, record


def read(open_file: Callable[[str], IO[bytes]], name: str, size: tuple[int, int] | None, record: Record) -> np.ndarray:
    """Read one image, uint8 [height, width, 3].

    The image is scaled by PIL's bicubic filter to cover `size` and cropped at the centre.

    Args:
        open_file, name: as `opened` yields them.
        size: (width, height) in pixels; None: as it is stored.
        record: the `Record` that counts the image.
    Raises:
        DataError: the file is not a readable image, has more pixels than Pillow opens, or values of unknown range.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_file(name) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images below the limit, and palettes with transparency
            if not file.read(1):
                raise ValueError("the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                size = size or image.size
                kinds = _kinds(image, size)
                pixels = np.asarray(ImageOps.fit(_rgb(image), size, Image.Resampling.BICUBIC))
                if _is_plain(pixels):
                    kinds.append("alpha_only" if "alpha" in kinds and not _is_plain_alpha(image) else "one_colour")
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{record.source}/{name}: more than the {limit:,} pixels that Pillow opens; scale the image down."
        ) from error
    except RuntimeError as error:  # zipfile raises it for an encrypted file or an unknown compression
        raise DataError(f"{record.source}/{name}: cannot be read from the archive ({error}).") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        reason = "of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"{record.source}/{name}: not a readable image ({reason}); remove it or fetch it again."
        ) from error
    record.add(name, kinds)
    return pixels


def picture(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """Read one image file, as `read` does; raises as `read`."""
    return read(lambda name: _open(path.parent / name), path.name, size, Record(path.parent))


def _pictures(names, record):
    """The sorted names of images; other files are counted as left out."""
    pictures = []
    for name in names:
        path = PurePosixPath(name)
        if "__MACOSX" in path.parts or any(part.startswith(".") and part != ".." for part in path.parts):
            record.left_out["hidden"] += 1
        elif path.suffix.lower() in SUFFIXES:
            pictures.append(name)
        else:
            record.left_out[path.suffix.lower() or "without suffix"] += 1
    return sorted(pictures)


def _open(path):
    if not path.exists() and path.is_symlink():
        raise DataError(f"{path}: a link that leads nowhere; remove it or mend it.")
    return path.open("rb")


def _kinds(image, size):
    """The kinds of KINDS that an image's header shows."""
    width, height = size
    kinds = {
        "alpha": image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
        "sixteen_bit": image.mode in SIXTEEN_BIT,
        "cmyk": image.mode == "CMYK",
        "turned": image.getexif().get(ORIENTATION, 1) != 1,
        "frames": getattr(image, "n_frames", 1) > 1,
        "enlarged": image.width < width or image.height < height,
    }
    return [kind for kind, applies in kinds.items() if applies]


def _rgb(image):
    """Convert an image to RGB by PIL, except for 16-bit grey images, which are scaled."""
    from PIL import Image

    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}, beyond 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, whose range nothing tells")
    return image.convert("RGB")


def _is_plain(pixels):  # [h, w, channels]
    return bool((pixels == pixels[:1, :1]).all())


def _is_plain_alpha(image):
    return _is_plain(np.asarray(image.convert("RGBA"))[..., 3:])
