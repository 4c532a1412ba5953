"""The project's tests that compute on a GPU: every kernel against its reference. They need pytest alone."""

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as Xml

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT

MARK = re.compile(r"pytest\.mark\.cuda\b")
SHOWN = 2000  # characters of a failure


def run(record) -> None:
    """The stage: counts of outcomes, and what failed."""
    files = sorted(path for path in (PROJECT / "tests").rglob("test_*.py") if MARK.search(path.read_text()))
    if not files:
        raise DataError("no test is marked cuda")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-p", "no:xdist",
                   f"--junit-xml={report}", *map(str, files)]  # fmt: skip
        said = ""
        try:
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=max(record.left(), 1))
            said = (done.stdout + done.stderr)[-SHOWN:]
        except subprocess.TimeoutExpired:
            record.partial("the time was over within the tests")
            return
        if not report.exists():
            raise DataError(f"pytest made no report: {said.splitlines()[-1] if said else 'it said nothing'}")
        record.keep(**outcomes(report.read_text()))
    if failed := record.found["counts"].get("failed"):
        record.keep(status="failed", reason=f"{failed} of {record.found['n']} tests failed")


def outcomes(report: str) -> dict:
    """{"n", "counts": {outcome: number}, "failures": [{"test", "message"}], "skipped": {reason: number}}."""
    counts, failures, skipped = collections.Counter(), [], collections.Counter()
    cases = list(Xml.fromstring(report).iter("testcase"))
    for case in cases:
        kinds = {child.tag: child for child in case}
        bad = kinds.get("failure", kinds.get("error"))
        if bad is not None:
            failures.append({"test": case.get("name"), "message": (bad.text or "")[-SHOWN:]})
        elif "skipped" in kinds:
            skipped[kinds["skipped"].get("message")] += 1
        counts["failed" if bad is not None else "skipped" if "skipped" in kinds else "passed"] += 1
    return {"n": len(cases), "counts": dict(counts), "failures": failures, "skipped": dict(skipped)}
