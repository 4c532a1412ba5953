"""Fetch the archive of a public data set into data/."""

import argparse
import contextlib
import hashlib
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
TIMEOUT_S = 60  # without a byte


class Refused(Exception):
    """An address does not give what it should; the message says why, in a few words."""


def fetch(path, archive, addresses=()):
    """Download an archive to `path` from the first address that gives it, whole or not at all.

    Args:
        archive: the `datasets.Archive` that it must be.
        addresses: other places that have it, asked first.
    Raises:
        DataError: no address can be reached, or they give other bytes; says what to do.
    """
    refusals = []
    with atomic_path(path) as temporary:
        for address in (*addresses, *archive.addresses):
            try:
                found = _download(address, temporary)
                if found == archive.sha256:
                    return
                refusals.append(f"{shown(address)} (its sha256 is {found[:12]}..., not {archive.sha256[:12]}...)")
            except Refused as error:
                refusals.append(f"{shown(address)} ({shown(str(error))})")
        raise DataError(
            f"{path}: cannot be fetched from {' or '.join(refusals)}; fetch it on another machine and put it there."
        )


def _download(address, path):
    """Write what an address gives to a file; returns its sha256."""
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
    """Tell an address that fails from a disk that does."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address
        raise Refused(str(getattr(error, "reason", None) or error)) from error


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the archive to fetch: data/...")
    parser.add_argument("--address", action="append", default=[], help="another place that has it, asked first")
    args = parser.parse_args(argv)
    fetch(args.output, datasets.ARCHIVES[datasets.absent(args.output, datasets.ARCHIVES)], args.address)


if __name__ == "__main__":
    command.run(main)
