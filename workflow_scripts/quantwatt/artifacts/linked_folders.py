"""List the files of a folder, following links: image sets and references are often assembled from links."""

import os
from collections.abc import Iterator
from pathlib import Path

from quantwatt.artifacts.errors import DataError


def files(top: str | Path) -> Iterator[str]:
    """The paths of all files in a folder and its subfolders, in the order of their names.

    Links are followed, except links to a folder above the link: the files there are listed already.

    Args:
        top: a folder.
    Returns:
        generator of str, each beginning with `top`.
    Raises:
        DataError: a folder cannot be read.
    """
    yield from _within(os.fspath(Path(top)), ())


def names(top: str | Path) -> list[str]:
    """The sorted names, relative to a folder, of the regular files that `files` lists.

    Broken links, and entries that are not regular files, are left out.
    """
    return sorted(os.path.relpath(path, top) for path in files(top) if os.path.isfile(path))


def _within(folder, above):
    """List a folder recursively; `above` holds (device, inode) of the folders that contain it."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:  # knows each entry's kind without another system call
            entries = sorted((entry.name, entry.is_dir()) for entry in listing)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}).") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name, is_folder in entries:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _within(path, (*above, here))
        else:
            yield path
