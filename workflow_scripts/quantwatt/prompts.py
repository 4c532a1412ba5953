"""The prompts of a sampling: one a line of its file, or its lines over and over."""

import itertools
from pathlib import Path

from quantwatt.manifest import DataError


def first(sampling, count):
    """The first `count` prompts of a sampling; with `cycle` its lines are taken again from the first.

    Returns:
        list of str, fewer where the file has fewer lines and is not taken again.
    Raises:
        DataError: the file cannot be read, or has no line.
    """
    try:
        lines = Path(sampling["prompts"]).read_text().splitlines()
    except OSError as error:
        raise DataError(f"{sampling['prompts']}: the prompts cannot be read ({error.strerror}).") from error
    if not lines:
        raise DataError(f"{sampling['prompts']}: there is no prompt in it.")
    return list(itertools.islice(itertools.cycle(lines), count)) if sampling.get("cycle") else lines[:count]
