"""Read JSON and CSV of strangers: strictly, within limits, and with the entry's name in every refusal."""

import csv
import io
import json
import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from quantwatt.artifacts.errors import DataError

LARGEST = 1e15  # magnitude of a figure; a longer one is no measurement and would break every table
LONGEST = 2_000  # characters of a text
MOST_ROWS = 200_000
# Control characters, halves of surrogate pairs, and marks that turn the direction of the text behind them: a name with
# one is shown as another name. The last two are no characters, and XML refuses them.
UNSHOWN = ("Cc", "Cs")
TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c\ufffe\uffff"


class _Refused(ValueError):
    pass


def as_json(value: Any) -> bytes:
    """`value` as canonical JSON: sorted keys, one form for equal values.

    Raises:
        ValueError: NaN or infinity.
    """
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_json(data: bytes, where: str) -> Any:
    """Parse JSON.

    Args:
        where: names file and entry in messages.
    Raises:
        DataError: not JSON in UTF-8; a key twice, NaN, a number too large, a text too long or that cannot be shown, or
            too deeply nested.
    """
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_constant, parse_float=_float, parse_int=_int,
            object_pairs_hook=_pairs,
        )  # fmt: skip
    except _Refused as error:
        raise DataError(f"{where}: {error}.") from error
    except RecursionError as error:
        raise DataError(f"{where}: is nested too deeply.") from error
    except ValueError as error:  # also of UTF-8
        raise DataError(f"{where}: not JSON ({reason_of(error)}).") from error


def _constant(text):
    raise _Refused(f"{text} is not a number")


def _float(text):
    value = float(text)
    if abs(value) > LARGEST:
        raise _Refused(f"{text[:20]} is too large a number")
    return value


def _int(text):
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise _Refused(f"{text[:20]}{'...' * (len(text) > 20)} has more than 64 bits")
    return int(text)


def _pairs(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Refused("a key is there twice")
    for part in (*found, *found.values()):
        for text in part if isinstance(part, list) else (part,):
            if isinstance(text, str) and (fault := fault_of(text)):
                raise _Refused(fault)
    return found


def reason_of(error: Exception) -> str:
    """What a library says of a fault, short and on one line: it may quote the stranger's bytes."""
    return "".join(c if c.isprintable() else " " for c in str(error))[:160].strip().rstrip(".")


def fault_of(text: str) -> str | None:
    """Why a text cannot be shown, or None."""
    if len(text) > LONGEST:
        return f"a text has {len(text):,} characters; at most {LONGEST:,} are read"
    if any(unicodedata.category(c) in UNSHOWN or c in TURNING for c in text if c not in "\n\t"):
        return f"{json.dumps(text[:40])} holds a character that cannot be shown"
    return None


def read_csv(data: bytes, where: str, kinds: Mapping[str, type], needed: Collection[str]) -> list[dict[str, Any]]:
    """Parse a CSV file as `tables.write_table` writes it: empty fields are None.

    Args:
        where: names file and entry in messages.
        kinds: {column: str, bool or float}; other columns are left out.
        needed: columns that must be there.
    Returns:
        One {column: value} per row, with all columns of `kinds`; floats are finite, at most LARGEST.
    Raises:
        DataError: the table is malformed, or a field is not of its kind.
    """
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        header = next(rows, [])
        _check_header(header, needed, where)
        table = []
        for number, row in enumerate(rows, 1):
            if len(row) != len(header) or number > MOST_ROWS:
                raise DataError(
                    f"{where}: row {number}: {len(row)} fields instead of {len(header)}, or a row too many."
                )
            table.append(_typed(header, row, kinds, f"{where}: row {number}"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not a table in CSV ({reason_of(error)}).") from error
    return table


def _check_header(header: Sequence[str], needed, where):
    if len(set(header)) < len(header):
        raise DataError(f"{where}: a column is there twice.")
    if missing := [name for name in needed if name not in header]:
        raise DataError(f"{where}: the column {missing[0]} is missing.")


def _typed(header, row, kinds, where):
    values = dict.fromkeys(kinds)
    for name, text in zip(header, row, strict=True):
        if fault := fault_of(text):
            raise DataError(f"{where}: {json.dumps(name[:40])}: {fault}.")
        if name in kinds and text:
            values[name] = _value(text, kinds[name], f"{where}: {name}")
    return values


def _value(text, kind, where):
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise DataError(f"{where}: {text[:40]!r} is neither true nor false.")
        return text == "true"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:  # NaN is no number either
        raise DataError(f"{where}: {text[:40]!r} is no number, or too large a one.")
    return value
