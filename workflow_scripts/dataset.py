"""Extract a file of a data set from a downloaded archive."""

import argparse
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path
from quantwatt.data import datasets
from quantwatt.jobs import command


def extract(path: str | Path, part: datasets.Extract, archive: str | Path) -> None:
    """Extract the file `path` from an archive, and check it with the reader that jobs use.

    Args:
        part: a `datasets.Extract`.
    Raises:
        DataError: the archive is broken, or the extracted file is not as expected.
    """
    try:
        content = _content(archive, part.member)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive}: not a readable ZIP archive; delete it to have it fetched again.") from error
    except KeyError as error:
        raise DataError(f"{archive}: holds no {part.member}; delete it to have it fetched again.") from error
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(part.make(content, part.entries))
            entries = part.count(temporary)
        except DataError as error:
            reason = str(error).removeprefix(f"{temporary}: ")
            raise DataError(f"{archive}: {part.member or 'the file'}: {reason}") from error
        if entries != part.entries:
            member = part.member or "the file"
            raise DataError(f"{archive}: {member} has {entries} {part.unit}, and should have {part.entries}.")


def _content(archive, member):
    if member is None:
        return Path(archive).read_bytes()
    with zipfile.ZipFile(archive) as opened:
        return opened.read(member)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the file to write: data/...")
    parser.add_argument("--archive", help="extract from this archive instead of the one under data/")
    args = parser.parse_args(argv)
    part = datasets.EXTRACTS[datasets.absent(args.output, datasets.EXTRACTS)]
    extract(args.output, part, args.archive or f"{datasets.FOLDER}/{part.archive}")


if __name__ == "__main__":
    command.run(main)
