"""Files and folders that an experiment names, by their content, and those that come with its models."""

import hashlib
import os
from pathlib import Path

from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.file_hashes import FileHashes
from quantwatt.artifacts.manifest import PROJECT as ROOT

EMBEDDED = Path("resources/models")  # ships with quantwatt
HASHES = Path(".snakemake/file-hashes.json")


def evaluations(models):
    """What the embedded models among an experiment's were found to be worth before anything is quantized.

    Args:
        models: {name: settings}.
    Returns:
        list of paths relative to the project, each once: evaluation.json for tiny-sd3, which shares it with the judge,
        evaluation-NAME.json for others.
    """
    found = []
    for settings in models.values():
        path = Path(settings.get("path") or "")
        if path.parent == EMBEDDED:
            name = "evaluation.json" if path.name == "tiny-sd3" else f"evaluation-{path.name}.json"
            found.append(str(EMBEDDED / name))
    return [path for path in dict.fromkeys(found) if (ROOT / path).exists()]


def listing(folder):
    """A hash of the names and sizes of all files in a folder: of a million, whose content would take too long.

    Args:
        folder: relative to the project.
    Returns:
        hex string.
    """
    digest, top = hashlib.sha256(), ROOT / folder
    for name in linked_folders.names(top):
        digest.update(f"{name} {os.path.getsize(os.path.join(top, name))}\n".encode())
    return digest.hexdigest()


def fingerprint(path, names=None):
    """A hash of a file or of the files of a folder, so that other content under the same path is another input.

    Files are named by content and not by date: a checkout or a touch reruns nothing. All bytes are read, once for each
    state of a file: see `quantwatt.artifacts.file_hashes`.

    Args:
        path: relative to the project; links are followed.
        names: of the files in the folder that count; all of them without it.
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
