"""Download the archive of a public data set into data/."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path
from quantwatt.artifacts.manifest import without_credentials as shown
from quantwatt.data import datasets
from quantwatt.jobs import command
from quantwatt.jobs.progress import progress

CHUNK_BYTES = 1_000_000
TIMEOUT_S = 60  # seconds without a received byte


class Refused(Exception):
    """A download from an address failed; the message says why, in a few words."""


def fetch(path: str | Path, archive: datasets.Archive, expected: str, addresses: Iterable[str] = ()) -> None:
    """Download an archive to `path` from the first address that serves it, completely or not at all.

    Args:
        archive: the `datasets.Archive`.
        expected: its sha256.
        addresses: further addresses, which are tried first.
    Raises:
        DataError: no address can be reached, or all serve other bytes; tells what to do.
    """
    refusals = []
    with atomic_path(path) as temporary:
        for address in (*addresses, *archive.addresses):
            try:
                sha256 = _download(address, temporary)
                if sha256 == expected:
                    print(f"{path}: its licence: {archive.licence or 'see its publisher'}")
                    return
                refusals.append(f"{shown(address)} (its sha256 is {sha256[:12]}..., not {expected[:12]}...)")
            except Refused as error:
                refusals.append(f"{shown(address)} ({shown(str(error))})")
        raise DataError(
            f"{path}: cannot be fetched from {' or '.join(refusals)}; fetch it on another machine and put it there."
        )


def _download(address, path):
    """Download an address to a file; returns the file's sha256."""
    digest, received = hashlib.sha256(), 0
    with _asking():
        response = urlopen(Request(address, headers={"User-Agent": "quantwatt"}), timeout=TIMEOUT_S)
    size = int(response.headers.get("Content-Length") or 0)
    with (
        response,
        Path(path).open("wb") as file,
        progress(total=size or None, description=shown(address), unit="B") as bar,
    ):
        while True:
            with _asking():
                chunk = response.read(CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if received < size:
        raise Refused(f"the connection broke after {received} of {size} bytes")
    return digest.hexdigest()


@contextlib.contextmanager
def _asking():
    """Convert network errors to `Refused`, to distinguish them from disk errors."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address
        raise Refused(str(getattr(error, "reason", None) or error)) from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the archive to download: data/...")
    parser.add_argument("--address", action="append", default=[], help="a further address of it, tried first")
    parser.add_argument(
        "--sha256", type=json.loads, default={}, help="JSON: {archive below data/: sha256} of those that are not known"
    )
    args = parser.parse_args(argv)
    name = datasets.absent(args.output, datasets.ARCHIVES)
    fetch(args.output, datasets.ARCHIVES[name], datasets.sha256_of(name, args.sha256), args.address)


if __name__ == "__main__":
    command.run(main)
