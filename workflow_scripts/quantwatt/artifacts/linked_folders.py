"""The files of a folder, through links to files and folders, as image sets and references are often put together."""

import os
from collections.abc import Iterator
from pathlib import Path

from quantwatt.artifacts.errors import DataError


def files(top: str | Path) -> Iterator[str]:
    """The paths of all files in a folder and its subfolders, in the order of their names.

    Links are followed. One that leads back to a folder that it lies in is left out: its files have been seen.

    Args:
        top: a folder.
    Returns:
        generator of str, each beginning with `top`.
    Raises:
        DataError: a folder cannot be read.
    """
    yield from _within(os.fspath(Path(top)), ())


def names(top: str | Path) -> list[str]:
    """The sorted names, relative to a folder, of the plain files that `files` finds in it.

    Links that lead nowhere, and what is no plain file, are left out.
    """
    return sorted(os.path.relpath(path, top) for path in files(top) if os.path.isfile(path))


def _within(folder, above):
    """above: (device, inode) of the folders that this one lies in."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:  # which knows the kind of an entry without asking the disk again
            entries = sorted((entry.name, entry.is_dir()) for entry in found)
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
