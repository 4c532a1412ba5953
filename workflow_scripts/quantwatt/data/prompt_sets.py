"""Published sets of prompts with categories, as tables of two columns: prompt and category."""

import csv
import io
import json
import zlib
from collections.abc import Sequence

from quantwatt.artifacts.errors import DataError

Row = tuple[str, str]  # prompt, category


def drawn(rows: Sequence[Row], entries: int, seed: int = 0) -> list[Row]:
    """A choice of rows in the publisher's order, by a checksum of their number and the seed: the same everywhere.

    Raises:
        DataError: there are fewer rows.
    """
    if len(rows) < entries:
        raise DataError(f"there are {len(rows)} prompts, and {entries} are asked for.")
    numbers = sorted(range(len(rows)), key=lambda number: (zlib.crc32(f"{seed} {number}".encode()), number))
    return [rows[number] for number in sorted(numbers[:entries])]


def table(rows: Sequence[Row]) -> bytes:
    """The rows as a table with tabs between the columns; line breaks and tabs in a prompt become spaces."""
    lines = ["prompt\tcategory", *("\t".join(" ".join(text.split()) for text in row) for row in rows)]
    return "".join(f"{line}\n" for line in lines).encode()


def parti(content: bytes, entries: int) -> bytes:
    """PartiPrompts (arXiv 2206.10789), of PartiPrompts.tsv: Prompt, Category, Challenge, Note.

    Raises:
        DataError: the file is not theirs, or has fewer prompts.
    """
    try:
        rows = csv.DictReader(io.StringIO(content.decode()), delimiter="\t", quoting=csv.QUOTE_NONE)
        found = [(row["Prompt"], row["Category"]) for row in rows]
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"these are not PartiPrompts ({type(error).__name__}: {error}).") from error
    return table(drawn(found, entries))


def geneval(content: bytes, entries: int) -> bytes:
    """GenEval's prompts (arXiv 2310.11513), of evaluation_metadata.jsonl: {"tag", "prompt", ...} a line.

    Raises:
        DataError: the file is not theirs, or has fewer prompts.
    """
    try:
        found = [(entry["prompt"], entry["tag"]) for entry in map(json.loads, content.decode().splitlines())]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"these are not GenEval's prompts ({type(error).__name__}: {error}).") from error
    return table(drawn(found, entries))
