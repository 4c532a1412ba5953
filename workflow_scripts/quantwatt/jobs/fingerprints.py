"""Hashes of the files and folders that an experiment names, and evaluations of embedded models."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.file_hashes import FileHashes
from quantwatt.artifacts.manifest import PROJECT as ROOT

EMBEDDED = Path("resources/models")  # ships with quantwatt
HASHES = Path(".snakemake/file-hashes.json")


def evaluations(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The files with the quality of an experiment's embedded models before quantization.

    Args:
        models: {name: settings}.
    Returns:
        list of distinct paths relative to the project: evaluation.json for tiny-sd3 and the judge, evaluation-NAME.json
        for other models.
    """
    paths = []
    for settings in models.values():
        path = Path(settings.get("path") or "")
        if path.parent == EMBEDDED:
            name = "evaluation.json" if path.name == "tiny-sd3" else f"evaluation-{path.name}.json"
            paths.append(str(EMBEDDED / name))
    return [path for path in dict.fromkeys(paths) if (ROOT / path).exists()]


def listing(folder: str | Path) -> str:
    """A hash of the names and sizes of all files in a folder, for a million files whose content takes too long to hash.

    Args:
        folder: relative to the project.
    Returns:
        hex string.
    """
    digest, top = hashlib.sha256(), ROOT / folder
    for name in linked_folders.names(top):
        digest.update(f"{name} {os.path.getsize(os.path.join(top, name))}\n".encode())
    return digest.hexdigest()


def fingerprint(path: str | Path, names: Iterable[str] | None = None) -> str:
    """A hash of a file or of the files of a folder, so that changed content under the same path is another input.

    The hash depends on content and not on dates: a checkout or a touch reruns nothing. The bytes of a file are read
    only after a change, see `quantwatt.artifacts.file_hashes`.

    Args:
        path: relative to the project; links are followed.
        names: of the files in the folder that count; default: all files.
    Returns:
        hex string.
    Raises:
        DataError: a file cannot be read.
    """
    digest, top = hashlib.sha256(), ROOT / path
    try:
        names = [""] if top.is_file() else linked_folders.names(top) if names is None else names
        with FileHashes(ROOT / HASHES) as hashes:
            for name in names:
                digest.update(f"{name} {hashes.sha256(top / name)}\n".encode())
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()
