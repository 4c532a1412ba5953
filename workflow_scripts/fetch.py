"""Fetch a public data set into data/, or make one of its files out of an archive that is there."""

import argparse
import contextlib
import hashlib
import zipfile
import zlib
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


def extract(path, part, archive):
    """Make the file `path` out of an archive, checked by the reader that will read it.

    Args:
        part: a `datasets.Extract`.
    Raises:
        DataError: the archive is broken, or does not hold what it should.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(part.member)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive}: not a readable ZIP archive; delete it to have it fetched again.") from error
    except KeyError as error:
        raise DataError(f"{archive}: holds no {part.member}; delete it to have it fetched again.") from error
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(part.make(content, part.entries))
            found = part.count(temporary)
        except DataError as error:
            reason = str(error).removeprefix(f"{temporary}: ")
            raise DataError(f"{archive}: {part.member}: {reason}") from error
        if found != part.entries:
            raise DataError(f"{archive}: {part.member} has {found} {part.unit}, and should have {part.entries}.")


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
    parser.add_argument("--output", required=True, help="the archive or file to make: data/...")
    parser.add_argument("--archive", help="make the file out of this archive")
    parser.add_argument("--address", action="append", default=[], help="another place that has it, asked first")
    args = parser.parse_args(argv)
    name = datasets.name_of(args.output)
    if name is None:
        known = ", ".join(f"{datasets.FOLDER}/{name}" for name in (*datasets.ARCHIVES, *datasets.EXTRACTS))
        raise DataError(f"{args.output}: nothing is known of it (known: {known}).")
    if Path(args.output).exists():
        raise DataError(f"{args.output}: it is there already; delete it to have it made anew.")
    if name in datasets.YOURS:
        raise DataError(f"{args.output}: {datasets.YOURS[name]}")
    if name in datasets.ARCHIVES:
        fetch(args.output, datasets.ARCHIVES[name], args.address)
    else:
        part = datasets.EXTRACTS[name]
        extract(args.output, part, args.archive or f"{datasets.FOLDER}/{part.archive}")


if __name__ == "__main__":
    command.run(main)
