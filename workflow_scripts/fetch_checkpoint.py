"""Make a checkpoint that others have quantized available locally, and describe its files.

Of a repository only the kinds of files that the loader reads are fetched: safetensors, GGUF and JSON. Nothing of it is
run, and nothing is unpickled.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quantwatt import registry
from quantwatt.artifacts import linked_folders, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.inference.loaders import PICKLES
from quantwatt.jobs import command


def fetch(settings: Mapping[str, Any]) -> tuple[Path, list[str]]:
    """(folder, names of the files in it that the loader reads) of a completed `checkpoint` entry.

    Raises:
        DataError: it holds no such file, holds pickles alone, or the hub cannot be reached.
    """
    patterns = [settings["file"]] if settings.get("file") else list(registry.load("loaders", settings["loader"]).FILES)
    if path := settings.get("path"):
        folder = manifest.PROJECT / path
        if folder.is_file():
            if not any(fnmatch(folder.name, pattern) for pattern in patterns):
                raise DataError(
                    f"{path}: {settings['loader']} reads {', '.join(patterns)}{_of_pickles([folder.name])}."
                )
            return Path(path).parent, [folder.name]
        names = list(linked_folders.names(folder))
        if found := [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]:
            return Path(path), sorted(found)
        raise DataError(f"{path}: holds no {' or '.join(patterns)}{_of_pickles(names)}.")
    return _download(settings, patterns)


def _of_pickles(names):
    if any(name.endswith(PICKLES) for name in names):
        return ", only pickles, which can run code and are not read; ask for safetensors or GGUF"
    return ""


def _download(settings, patterns):
    from huggingface_hub import errors, snapshot_download

    where = f"{settings['hub']} at {settings['revision'][:12]}"
    try:
        folder = Path(snapshot_download(settings["hub"], revision=settings["revision"], allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise DataError(
            f"{where}: gated; accept its licence on the hub, then set HF_TOKEN in the environment."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DataError(f"{where}: no such repository or commit, or it is private.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"{where}: not on this machine and the hub cannot be reached ({type(error).__name__})."
        ) from error
    found = sorted(name for name in linked_folders.names(folder) if any(fnmatch(name, p) for p in patterns))
    if not found:
        raise DataError(f"{where}: holds no {' or '.join(patterns)}; pickles are not read.")
    return folder, found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="the method's `checkpoint`, as JSON")
    parser.add_argument("--output", required=True, help="METHOD.json to write")
    args = parser.parse_args(argv)
    folder, names = fetch(args.settings)
    files = manifest.describe_files(manifest.PROJECT / folder, names)
    manifest.write_json(args.output, {"settings": args.settings, "location": str(folder), "files": files})


if __name__ == "__main__":
    command.run(main, fetches=True)
