"""Check a machine for a run: each check returns its status, its result and a remedy.

A check is a function that returns (status, result, remedy or ""). It imports other packages inside the function, so
that a broken installation becomes a row of the table and does not end the program.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from quantwatt.artifacts.manifest import without_credentials

OK, MISSING, NOTE = "ok", "missing", "note"  # only MISSING prevents a run
WIDTH, NAMES = 110, 14  # width of the table, and of its column with the checks' names, in characters


@dataclass(frozen=True)
class Finding:
    """The result of one check: its status, what it detected, and what to do about it."""

    check: str
    status: str
    found: str
    remedy: str


def examine(checks):
    """Run the checks {name: function} in order; returns [Finding]. A check that raises has the status MISSING.

    Findings contain no tokens, no passwords in addresses, and not the path of the user's home.
    """
    return [Finding(name, *map(_clean, _run(check))) for name, check in checks.items()]


def _run(check):
    try:
        return check()
    except Exception as error:  # noqa: BLE001  (a broken installation may raise anything)
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        return MISSING, f"{type(error).__name__}: {sentence}", "mend the installation: make report installs it"


def _clean(text):
    home = str(Path.home())
    text = " ".join(without_credentials(str(text)).split())
    return text if home == "/" else text.replace(home, "~")


def table(findings):
    """The findings as lines of at most WIDTH characters."""
    for finding in findings:
        begin = f"{finding.check:<{NAMES}} {finding.status:<8} "
        space = " " * len(begin)
        yield from textwrap.wrap(finding.found, WIDTH, initial_indent=begin, subsequent_indent=space)
        if finding.remedy and finding.status != OK:
            yield from textwrap.wrap(f"-> {finding.remedy}", WIDTH, initial_indent=space, subsequent_indent=space)


def lacking(findings):
    """Names of the checks with the status MISSING."""
    return [finding.check for finding in findings if finding.status == MISSING]
