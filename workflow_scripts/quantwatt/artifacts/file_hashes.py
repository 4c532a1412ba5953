"""The sha256 of files, remembered between runs, so that planning reads gigabytes once.

A remembered hash is taken only for the very file: the same path, device, inode, size and times of content and status.
A change within a clock's tick of the hashing could leave all of these as they were, so that what was changed a moment
ago is not remembered. A file of hashes that is broken is as good as none.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, sha256

SETTLED_NS = 2_000_000_000  # after a change; coarser than the clocks of file systems
MOST = 200_000  # files that are remembered, the last ones


class FileHashes:
    """Hashes of files by path, from a JSON file and back into it.

    with FileHashes(".snakemake/file-hashes.json") as hashes:
        hashes.sha256("model.safetensors")
    """

    def __init__(self, path: str | Path):
        self._path, self._known, self._new = path, {}, {}

    def __enter__(self):
        self._known = _read(self._path)
        return self

    def __exit__(self, *_):
        """Add what is new to what others have written meanwhile; where nothing can be written, all is hashed again."""
        if self._new:
            kept = _read(self._path) | self._new
            text = json.dumps(dict(list(kept.items())[-MOST:]))
            with contextlib.suppress(OSError, DataError), atomic_path(self._path) as temporary:
                temporary.write_text(text)

    def sha256(self, path: str | Path) -> str:
        """Hex sha256 of a file's bytes, behind links.

        Raises:
            OSError: it cannot be read.
        """
        path = os.path.realpath(path)
        before = _identity(path)
        known = self._known.get(path)
        if isinstance(known, list) and known[:-1] == before:
            return known[-1]
        found = sha256(path)
        changed = max(before[-2:])  # times of content and status
        if before == _identity(path) and changed + SETTLED_NS < time.time_ns():
            self._known[path] = self._new[path] = [*before, found]
        return found


def _identity(path):
    told = os.stat(path)
    return [told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]


def _read(path):
    """{path: [device, inode, size, mtime, ctime, sha256]}, or nothing where the file is missing or broken."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {name: entry for name, entry in found.items() if _is_entry(entry)}
    return {}


def _is_entry(entry):
    numbers = isinstance(entry, list) and len(entry) == 6 and all(isinstance(part, int) for part in entry[:-1])
    return numbers and isinstance(entry[-1], str) and len(entry[-1]) == 64
