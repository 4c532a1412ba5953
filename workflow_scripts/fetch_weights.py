"""Make the weights of a feature extractor available locally and describe them: files with sha256 and sizes.

Jobs that extract features may run without a network: this script downloads the weights before, and the jobs check the
weights that they load against its manifest.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt import registry
from quantwatt.artifacts import manifest
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command
from quantwatt.score.extractors import NAMES


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extractor", required=True, choices=NAMES)
    parser.add_argument(
        "--settings",
        required=True,
        type=json.loads,
        help='JSON: judge {"model": "local-dir:PATH" or a hub name, "pretrained": TAG, "batch": 64}; '
        'classifier {"network": "digits" or torchvision\'s name, "path": PATH, "batch": 64}; '
        'inception {"weights": PATH or "download", "batch": 32}; '
        'others {"weights": PATH, or the name of a repository with "revision": COMMIT, "batch": 16}',
    )
    parser.add_argument("--output", required=True, help="EXTRACTOR.json to write")
    args = parser.parse_args(argv)
    files = [Path(path) for path in registry.load("extractors", args.extractor).fetch(args.settings)]
    folder = files[0].parent
    manifest.write_json(
        args.output,
        {
            "extractor": args.extractor,
            "settings": args.settings,
            "location": str(folder),
            "files": manifest.describe_files(folder, [path.relative_to(folder).as_posix() for path in files]),
            "provenance": provenance(("torch", "torchvision", "clean-fid", "open_clip_torch")),
        },
    )


if __name__ == "__main__":
    command.run(main, fetches=True)
