"""Real pictures as people have them: found in folders and ZIP archives, and read as clean-fid reads them.

clean-fid (arXiv 2104.11222) takes PIL's conversion to RGB of whatever it finds. So does this, with one exception:
Pillow cuts 16-bit greys off at 255, which makes nearly all of a picture white (python-pillow/Pillow#3011); they are
scaled. What else may surprise is counted in a record, which is said once and goes into the manifest.
"""

import contextlib
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # clean-fid's, of pictures
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # PIL's modes
ORIENTATION = 0x0112  # EXIF; 1 is upright
NAMED = 5  # files of one kind that a sentence names
KINDS = {  # what a picture may have, and what was done
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
    """How pictures were read: how many, and by KINDS how many of them and the first ones' names."""

    def __init__(self, source):
        self.source, self.read, self.left_out = source, 0, Counter()
        self.names = {kind: [] for kind in KINDS}
        self.counts = Counter()

    def add(self, name, kinds):
        self.read += 1
        for kind in kinds:
            self.counts[kind] += 1
            if len(self.names[kind]) < NAMED:
                self.names[kind].append(name)

    def described(self):
        """The record as JSON."""
        found = {kind: {"count": self.counts[kind], "first": self.names[kind]} for kind in KINDS if self.counts[kind]}
        return {"read": self.read, "left_out": dict(sorted(self.left_out.items())), **found}

    def sentences(self):
        """What a reader should know, a sentence a kind."""
        found = []
        if self.left_out:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
            found.append(f"{self.source}: left out: {kinds}.")
        for kind, words in KINDS.items():
            if count := self.counts[kind]:
                names = ", ".join(self.names[kind]) + (", ..." if count > NAMED else "")
                found.append(f"{self.source}: {count} of {self.read} pictures {words} ({names}).")
        return found


@contextlib.contextmanager
def opened(source):
    """The pictures of a folder (links followed) or of a ZIP archive.

    Hidden files, and the folder __MACOSX that a Mac adds to archives, hold no pictures of the set.

    Yields:
        (sorted names, a function that opens one by its name, the `Record` of what is left out).
    Raises:
        DataError: neither a folder nor a ZIP archive, a link leads nowhere, or an archive has two files of one name.
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


def read(open_file, name, size, record):
    """One picture, uint8 [height, width, 3].

    The shorter side is brought to size by PIL's bicubic filter, the longer one is cut evenly at both ends.

    Args:
        open_file, name: as of `opened`.
        size: (width, height) in pixels.
        record: where it is counted.
    Raises:
        DataError: not a readable image, of more pixels than Pillow opens, or of values that have no range.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_file(name) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large ones below the limit, palettes with transparency
            if not file.read(1):
                raise ValueError("the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                kinds = _kinds(image, size)
                pixels = np.asarray(ImageOps.fit(_rgb(image), size, Image.Resampling.BICUBIC))
                if _is_plain(pixels):
                    kinds.append("alpha_only" if "alpha" in kinds and not _is_plain_alpha(image) else "one_colour")
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise DataError(
            f"{record.source}/{name}: more than the {limit:,} pixels that Pillow opens; scale the image down."
        ) from error
    except RuntimeError as error:  # zipfile's of an encrypted file, and of a compression that it does not know
        raise DataError(f"{record.source}/{name}: cannot be read from the archive ({error}).") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        reason = "of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"{record.source}/{name}: not a readable image ({reason}); remove it or fetch it again."
        ) from error
    record.add(name, kinds)
    return pixels


def _pictures(names, record):
    """The names of pictures, sorted; others are counted as left out."""
    found = []
    for name in names:
        path = PurePosixPath(name)
        if "__MACOSX" in path.parts or any(part.startswith(".") and part != ".." for part in path.parts):
            record.left_out["hidden"] += 1
        elif path.suffix.lower() in SUFFIXES:
            found.append(name)
        else:
            record.left_out[path.suffix.lower() or "without suffix"] += 1
    return sorted(found)


def _open(path):
    if not path.exists() and path.is_symlink():
        raise DataError(f"{path}: a link that leads nowhere; remove it or mend it.")
    return path.open("rb")


def _kinds(image, size):
    """Of KINDS, those that an opened picture's header tells."""
    width, height = size
    found = {
        "alpha": image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
        "sixteen_bit": image.mode in SIXTEEN_BIT,
        "cmyk": image.mode == "CMYK",
        "turned": image.getexif().get(ORIENTATION, 1) != 1,
        "frames": getattr(image, "n_frames", 1) > 1,
        "enlarged": image.width < width or image.height < height,
    }
    return [kind for kind, is_so in found.items() if is_so]


def _rgb(image):
    """A picture in RGB, as PIL converts it but for 16-bit greys."""
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
