"""Keep what was read from syntax trees between runs, by the bytes of the sources: parsing all takes half of planning.

A key is a hash of the bytes, so that an entry is never wrong for a file, whatever its dates or its place; a broken file
of entries counts as empty.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path

MOST = 1000  # sources; the oldest are dropped

Parsed = tuple[str, list[str]]  # hash of the code, names of quantwatt that it imports


class ParsedSources:
    """{key of a source: Parsed}, loaded from a JSON file, and saved to it where something is new."""

    def __init__(self, path: Path, version: str):
        """`version`: changes with the code that makes entries, so that those of other code are not found."""
        self._path, self._version, self._known, self._new = path, version, _read(path), {}

    def key(self, source: bytes) -> str:
        return hashlib.sha256(self._version.encode() + source).hexdigest()

    def get(self, key: str) -> Parsed | None:
        return self._known.get(key)

    def put(self, key: str, parsed: Parsed) -> Parsed:
        self._known[key] = self._new[key] = parsed
        return parsed

    def save(self) -> None:
        """Merge new entries into the file, which other processes may have changed; failing, they are parsed again."""
        if self._new:
            kept = list((_read(self._path) | self._new).items())[-MOST:]
            with contextlib.suppress(OSError, DataError), atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps(dict(kept)))
            self._new = {}


def _read(path):
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, dict):
            return {key: tuple(entry) for key, entry in entries.items() if _is_entry(entry)}
    return {}


def _is_entry(entry):
    whole = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and len(entry[0]) == 64
    return whole and isinstance(entry[1], list) and all(isinstance(name, str) for name in entry[1])
