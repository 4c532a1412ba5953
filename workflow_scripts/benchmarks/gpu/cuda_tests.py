"""The project's tests that compute on a GPU: every kernel against its reference. They need pytest alone."""

import collections
import re

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT

MARK = re.compile(r"pytest\.mark\.cuda\b")
SHOWN = 2000  # characters of a failure
GOOD = ("passed", "skipped")


class Outcomes:
    """A plugin of pytest that keeps each outcome as it comes, and stops when the record's time is over."""

    def __init__(self, record):
        """Go on with what the record holds: tests that passed or were skipped are not run again."""
        self.record = record
        found = record.found.get("tests", {})
        self.tests = {name: test for name, test in found.items() if test["outcome"] in GOOD}
        self.complete = True

    def pytest_collection_modifyitems(self, items):
        """Leave out what is known."""
        items[:] = [item for item in items if item.nodeid not in self.tests]

    def pytest_runtest_protocol(self, item):
        """Run no further test when the time is over: True says that the test was taken care of."""
        if self.record.left() > 0:
            return None
        self.complete = False
        return True

    def pytest_runtest_logreport(self, report):
        """Keep the outcome of a test: that of its call, unless it was not called."""
        if report.when == "call" or report.outcome != "passed":
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.tests[report.nodeid] = {"outcome": report.outcome, "said": said[-SHOWN:]}
            counts = collections.Counter(test["outcome"] for test in self.tests.values())
            self.record.keep(tests=self.tests, counts=dict(counts))


def run(record) -> None:
    """The stage."""
    import pytest

    files = sorted(path for path in (PROJECT / "tests").rglob("test_*.py") if MARK.search(path.read_text()))
    outcomes = Outcomes(record)
    options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(PROJECT)]
    code = pytest.main([*options, *map(str, files)], plugins=[outcomes])
    if not outcomes.tests:
        raise DataError(f"pytest ran no test, and ended with {code}: see what it said above.")
    failed = [name for name, test in outcomes.tests.items() if test["outcome"] not in GOOD]
    if not outcomes.complete:
        record.partial("the time was over within the tests")
    elif failed:
        record.keep(status="failed", reason=f"{len(failed)} of {len(outcomes.tests)} tests failed: {failed[0]}")
