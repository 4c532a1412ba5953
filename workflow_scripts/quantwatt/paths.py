"""Files and folders that an experiment names, by their content, and those that come with its models."""

import hashlib
import os
from pathlib import Path

from quantwatt.manifest import PROJECT as ROOT

EMBEDDED = Path("resources/models")  # ships with quantwatt
WHOLE_FILE_BYTES, EDGE_BYTES = 64_000_000, 1_000_000


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
    for parent, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            digest.update(f"{os.path.relpath(path, top)} {os.path.getsize(path)}\n".encode())
    return digest.hexdigest()


def fingerprint(path):
    """A hash of a file or of all files of a folder, so that other content under the same path is another input.

    Files are named by content and not by date: a checkout or a touch reruns nothing. Of a file over 64 MB only its
    size, its first and its last megabyte are read, which holds planning to milliseconds.

    Args:
        path: relative to the project.
    Returns:
        hex string.
    """
    digest = hashlib.sha256()
    top = ROOT / path
    for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(top)} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()
