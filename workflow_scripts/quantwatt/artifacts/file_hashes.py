"""Cache the sha256 of files between runs, so that planning reads gigabytes only once.

A cached hash is valid only for the same path, device, inode, size, mtime and ctime. A change within one clock tick of
the hashing could leave all of these unchanged; files that were changed a moment ago are therefore not cached. A broken
cache file is treated as empty.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, sha256

SETTLED_NS = 2_000_000_000  # waiting time after a change; longer than a tick of file systems' clocks
MOST = 200_000  # entries of the cache; the oldest are dropped


class FileHashes:
    """Hashes of files by path, loaded from a JSON file and saved to it.

    with FileHashes(".snakemake/file-hashes.json") as hashes:
        hashes.sha256("model.safetensors")
    """

    def __init__(self, path: str | Path):
        self._path, self._known, self._new = path, {}, {}

    def __enter__(self):
        self._known = _read(self._path)
        return self

    def __exit__(self, *_):
        """Merge new hashes into the file, which other processes may have changed; failure only means hashing again."""
        if self._new:
            kept = _read(self._path) | self._new
            text = json.dumps(dict(list(kept.items())[-MOST:]))
            with contextlib.suppress(OSError, DataError), atomic_path(self._path) as temporary:
                temporary.write_text(text)

    def sha256(self, path: str | Path) -> str:
        """Hex sha256 of a file's bytes; links are followed.

        Raises:
            OSError: the file cannot be read.
        """
        path = os.path.realpath(path)
        before = _identity(path)
        known = self._known.get(path)
        if isinstance(known, list) and known[:-1] == before:
            return known[-1]
        digest = sha256(path)
        changed = max(before[-2:])  # mtime and ctime
        if before == _identity(path) and changed + SETTLED_NS < time.time_ns():
            self._known[path] = self._new[path] = [*before, digest]
        return digest


def _identity(path):
    status = os.stat(path)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(path):
    """{path: [device, inode, size, mtime, ctime, sha256]}, or {} where the file is missing or broken."""
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(entries, dict):
            return {name: entry for name, entry in entries.items() if _is_entry(entry)}
    return {}


def _is_entry(entry):
    numbers = isinstance(entry, list) and len(entry) == 6 and all(isinstance(part, int) for part in entry[:-1])
    return numbers and isinstance(entry[-1], str) and len(entry[-1]) == 64
