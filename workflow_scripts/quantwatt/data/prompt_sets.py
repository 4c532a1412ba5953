"""Published sets of prompts with categories, as tables of two columns: prompt and category."""

import csv
import io
import json
import zlib
from collections.abc import Sequence

import yaml

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


def mjhq(content: bytes, entries: int) -> bytes:
    """MJHQ-30K's prompts (arXiv 2402.17245), of meta_data.json: {image: {"category", "prompt", ...}}.

    Raises:
        DataError: the file is not theirs, or has fewer prompts.
    """
    try:
        found = [(entry["prompt"], entry["category"]) for entry in json.loads(content).values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"these are not MJHQ-30K's prompts ({type(error).__name__}: {error}).") from error
    return table(drawn(found, entries))


def sdci(content: bytes, entries: int) -> bytes:
    """Summarized captions of DCI (arXiv 2312.08578), as SVDQuant uses them, of sDCI.yaml: {image: caption}.

    Raises:
        DataError: the file is not theirs, or has fewer captions.
    """
    try:
        found = [_text(caption) for caption in yaml.safe_load(content).values()]
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"these are not sDCI's captions ({type(error).__name__}: {error}).") from error
    return _lines(found, entries)


def listed(content: bytes, entries: int) -> bytes:
    """DrawBench (arXiv 2205.11487), or a style of HPSv2's benchmark (arXiv 2306.09341): a JSON list of prompts.

    Raises:
        DataError: the file is no such list, or has fewer prompts.
    """
    try:
        found = [_text(prompt) for prompt in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise DataError(f"these are not a list of prompts ({type(error).__name__}: {error}).") from error
    return _lines(found, entries)


def _text(value):
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value


def _lines(texts, entries):
    chosen = drawn([(text, "") for text in texts], entries)
    return "".join(f"{' '.join(text.split())}\n" for text, _ in chosen).encode()
