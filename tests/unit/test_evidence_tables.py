"""docs/evidence.md's tables are those of the measurements that lie in the project."""

import pytest

from benchmarks import evidence_tables
from quantwatt.artifacts.errors import DataError


def test_the_page_is_what_make_evidence_writes():
    page = evidence_tables.PAGE.read_text()
    made = evidence_tables.blocks()
    assert evidence_tables.filled(page, made) == page
    assert {name for _, name, _ in evidence_tables.BLOCK.findall(page)} == made.keys()


def test_a_table_that_there_is_not_is_refused():
    with pytest.raises(DataError, match=r"evidence\.md: there is no table formats-9; there are formats-4\.25-weights,"):
        evidence_tables.filled("<!-- table: formats-9 -->\n<!-- end of table -->\n", evidence_tables.blocks())


def test_tables_of_another_experiment_are_not_taken(tmp_path):
    with pytest.raises(
        DataError, match="smoke: its tables are not kept; those of embedded-formats, embedded-schedule are"
    ):
        evidence_tables.main(["--add", str(tmp_path / "smoke")])
