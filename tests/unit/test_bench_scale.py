"""The benchmark of large image sets: its stages run on real files, and memory does not grow with the images."""

import json
import tracemalloc

import numpy as np
import pytest

from benchmarks import bench_scale
from quantwatt import intervals
from quantwatt.artifacts import images


def test_written_parts_are_a_set_that_can_be_scored(tmp_path):
    for name in ("method", "baseline"):
        bench_scale.write_part(tmp_path / name, range(0, 60), name)
    paths = [tmp_path / name / "part-00000.json" for name in ("method", "baseline")]
    pairs = list(zip(*images.paired_images(*paths), strict=True))
    assert len(pairs) == 60 and not any(np.array_equal(here, there) for here, there in pairs)


def test_table_has_a_line_per_stage():
    rows = [
        {"images": n, "stage": stage, "cpu_s": n / 100, "peak_mb": 300.0}
        for n in (4000, 1000)
        for stage in ("write", "psnr")
    ]
    head, write, psnr = bench_scale.table(rows)
    assert head.split() == ["stage", "1,000", "4,000"] and psnr.startswith("psnr")
    assert write.split()[1:] == "10.0 s, 300 MB 40.0 s, 300 MB".split()


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path):
    bench_scale.main(["--images", "120", "200", "--output", str(tmp_path / "scale.json")])
    rows = json.loads((tmp_path / "scale.json").read_text())
    assert {row["images"] for row in rows} == {120, 200}
    assert [row["stage"] for row in rows if row["images"] == 120] == [
        "write",
        "gather",
        "features",
        *bench_scale.METRICS,
    ]
    assert all(row["cpu_s"] > 0 and 10 < row["peak_mb"] < 4000 for row in rows)
    assert json.loads((tmp_path / "scale.machine.json").read_text())["features"] == "judge"


def test_resamples_are_drawn_in_pieces_and_are_the_same(monkeypatch):
    values = np.random.default_rng(3).random(200)
    whole = intervals.bootstrap_mean(values, resamples=101)
    monkeypatch.setattr(intervals, "COUNTS", 700)  # three resamples at once
    assert intervals.bootstrap_mean(values, resamples=101) == pytest.approx(whole, rel=1e-12)


def test_an_interval_of_50000_images_holds_no_table_of_all_resamples():
    values = np.random.default_rng(0).random(50_000)
    tracemalloc.start()
    intervals.bootstrap_mean(values, resamples=300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # 300 resamples' counts at once: 120 MB, and as much in float64
