"""The hours that `make plan` predicts: scaled from earlier runs, or a note that there are none."""

from pathlib import Path

import pytest

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import write_json
from tools import plan

METHODS = {name: {} for name in ("rtn", "gptq", "brecq")}
EXPERIMENT = {"samplings": {"large": {"images": 2500, "steps": 20, "batch_size": 1}}, "methods": METHODS}
FOLDER = Path("results/big")


@pytest.fixture
def results(tmp_path):
    """An earlier run: 100 images of 10 steps in 50 s by one method, 75 s by another, and what followed."""

    def benchmark(name, seconds):
        path = tmp_path / "small/benchmarks" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t9.5\n")

    for method, seconds in (("rtn", 50), ("gptq", 75)):
        benchmark(f"generate/m/{method}/s", seconds)
        write_json(tmp_path / f"small/images/m/{method}/s/manifest.json", {"n_images": 100, "steps": 10})
    benchmark("features/m/rtn/s/judge", 20)
    benchmark("features/reference/judge", 500)
    benchmark("quantize/m/rtn", 30)
    benchmark("generate/m/failed/s", 2)
    (tmp_path / "small/benchmarks/quantize/m/killed.tsv").touch()
    write_json(tmp_path / "small/images/m/failed/s/manifest.json", {"n_images": 0})
    return tmp_path


def predicted(results, *names, gpu=1):
    jobs = [(name.split("/")[0], FOLDER / "benchmarks" / f"{name}.tsv", gpu) for name in names]
    return plan.predict(jobs, EXPERIMENT, 1000, results, FOLDER)


def hours(results, name):
    row = predicted(results, name)[name.split("/")[0]]
    return row["hours"] if not row["unknown"] else None


def test_generating_goes_by_images_and_steps(results):
    assert hours(results, "generate/m/rtn/large") == pytest.approx(2500 * 20 * 0.05 / 3600)
    assert hours(results, "generate/m/gptq/large/part-02000") == pytest.approx(500 * 20 * 0.075 / 3600)
    new = hours(results, "generate/m/brecq/large/part-01000")  # a method as the others of its model
    assert new == pytest.approx(1000 * 20 * 0.0625 / 3600)
    assert hours(results, "generate/another/rtn/large") is None


def test_features_go_by_images_and_others_by_jobs(results):
    assert hours(results, "features/m/gptq/large/judge") == pytest.approx(2500 * 0.2 / 3600)
    assert hours(results, "quantize/m/brecq") == pytest.approx(30 / 3600)
    assert hours(results, "features/m/rtn/large/inception") == pytest.approx(2500 * 0.2 / 3600)
    assert hours(results, "features/reference/judge") == pytest.approx(500 / 3600)


def test_what_is_not_known_is_said(results, tmp_path):
    found = predicted(results, "generate/m/rtn/large", "generate/other/rtn/large", "calibrate/m", "calibrate/n")
    *_, counted, left_out = plan.table(found)
    assert counted.startswith("4 jobs; 0.7 GPU hours") and left_out.endswith("1 of generate, 2 of calibrate.")
    (tmp_path / "empty").mkdir()
    nothing = plan.table(predicted(tmp_path / "empty", "generate/m/rtn/large"))
    assert nothing[-1] == "1 jobs. How many GPU hours they take is not known: there is no earlier run to tell from."
    assert "hours without a GPU" in plan.table(predicted(results, "quantize/m/rtn", gpu=0))[-1]


def test_a_setting_without_a_value_is_named():
    with pytest.raises(DataError, match="^--config device: not of the form KEY=VALUE.$"):
        plan.main(["--experiment", "smoke", "--config", "device"])


def test_every_benchmark_file_has_a_kind_that_is_known():
    """The rules' own names: where one changes, what is scaled by images must change with it."""
    kinds = {pattern.split("/")[0] for pattern in layout.JOBS.values()}
    assert set(plan.SCALED) <= kinds
    assert layout.JOBS["generate_part"] == f"{layout.JOBS['generate']}/part-{{first}}"
