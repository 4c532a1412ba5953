"""Results copied to another place: recognized if the records of Snakemake were copied too, otherwise reported."""

import shutil

import pytest
from conftest import copy_of_the_tree

from quantwatt.jobs import moved_results

MODEL = "results/smoke/models/tiny-sd3/manifest.json"
UNKNOWN = "Snakemake has no record of how these results were made, and goes by dates alone"
MANUAL = "Copy .snakemake/metadata of where they were made to here, too"


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """(where a result was made, a clone that has it and no record of it)."""
    made, clone = (copy_of_the_tree(tmp_path_factory.mktemp(name)) for name in ("made", "clone"))
    done = made.snakemake("--cores", "1", "--", MODEL)
    assert done.returncode == 0 and UNKNOWN not in done.stdout, done.stdout
    shutil.copytree(made.path("results"), clone.path("results"))
    return made, clone


def test_moved_results_are_recognized_by_their_records_and_told_of_without(moved):
    made, clone = moved
    clone.replace("resources/experiments/smoke.yaml", "dtype: float32", "dtype: bfloat16")
    done = clone.snakemake("-n", "--", MODEL)
    assert f"results/smoke: {UNKNOWN}" in done.stdout and MANUAL in done.stdout
    assert "Describe model" not in done.stdout  # Snakemake keeps it, which the sentence is there for
    shutil.copytree(made.path(".snakemake/metadata"), clone.path(".snakemake/metadata"), dirs_exist_ok=True)
    assert clone.plan("--", MODEL) == {"Describe model tiny-sd3"}  # for records say what it was made with
    clone.restore()
    done = clone.snakemake("-n", "--", MODEL)
    assert "Nothing to be done" in done.stdout and UNKNOWN not in done.stdout


def test_long_names_and_touch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = f"results/{'long' * 60}"
    assert moved_results.warning(results) is None
    manifest = tmp_path / results / "models" / ("m" * 200) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert MANUAL in moved_results.warning(results)
    assert "--touch takes them for this experiment's, whatever settings" in moved_results.warning(results, touches=True)
    record = moved_results._record(manifest.relative_to(tmp_path))
    assert len(record.parts) > 3 and all(len(part) <= 255 for part in record.parts)
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert moved_results.warning(results) is None
