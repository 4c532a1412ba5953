"""What a run needs of this machine, check by check: what is there, what is missing, what to do.

A check is a function that returns (status, what was found, what to do or ""). What it imports of other packages it
imports inside, so that a broken installation is a row of the table and not its end.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from quantwatt.artifacts.manifest import without_credentials

OK, MISSING, NOTE = "ok", "missing", "note"  # only what is missing and needed keeps a run from working
WIDTH, NAMES = 110, 14  # columns of the table, and of the checks' names in it


@dataclass(frozen=True)
class Finding:
    """What one check has found: how it stands, what there is, and what to do about it."""

    check: str
    status: str
    found: str
    remedy: str


def examine(checks):
    """The findings of {name: function}, one after the other; a check that fails is one that something is missing for.

    Neither tokens, passwords in addresses nor the path of the user's home are in them.
    """
    return [Finding(name, *map(_clean, _run(check))) for name, check in checks.items()]


def _run(check):
    try:
        return check()
    except Exception as error:  # noqa: BLE001  (whatever a broken installation raises)
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        return MISSING, f"{type(error).__name__}: {sentence}", "mend the installation: make report installs it"


def _clean(text):
    home = str(Path.home())
    text = " ".join(without_credentials(str(text)).split())
    return text if home == "/" else text.replace(home, "~")


def table(findings):
    """Lines of at most WIDTH columns."""
    for finding in findings:
        begin = f"{finding.check:<{NAMES}} {finding.status:<8} "
        space = " " * len(begin)
        yield from textwrap.wrap(finding.found, WIDTH, initial_indent=begin, subsequent_indent=space)
        if finding.remedy and finding.status != OK:
            yield from textwrap.wrap(f"-> {finding.remedy}", WIDTH, initial_indent=space, subsequent_indent=space)


def lacking(findings):
    """Names of the checks that something needed is missing for."""
    return [finding.check for finding in findings if finding.status == MISSING]
