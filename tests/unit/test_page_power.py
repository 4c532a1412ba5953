"""What the page's charts of phases and of power draw."""

import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic

from quantwatt.report import tables, traces
from quantwatt.report.cells import read_cells
from quantwatt.report.page.phases import phase_groups, phase_rows
from quantwatt.report.page.power import BINS, power_curves


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    cells = read_cells(folder, synthetic.write_tree(folder, with_images=False), synthetic.METRICS)
    return folder, cells, tables.summary_table(cells, "bf16", synthetic.SEEDS)


def test_a_group_of_phases_has_every_measured_method_and_the_whole_that_its_phases_miss(results):
    _, cells, summary = results
    rows = phase_rows(cells, set(tables.first_samplings(summary)["sampling"]))
    [group] = phase_groups(rows)
    assert [method["name"] for method in group["methods"]] == [row["method"] for row in rows]
    for row, method in zip(rows, group["methods"], strict=True):
        total = sum(phase["latency_s"] for phase in method["phases"] if not phase["apart"])
        assert total / method["whole"]["latency_s"] - 1 == pytest.approx(
            row["checks"]["latency_s"]["difference"], abs=1e-4
        )


def test_a_phase_whose_ratio_is_too_noisy_has_none(results):
    rows = phase_rows(results[1], {cell.sampling for cell in results[1]})
    rows[0]["phases"][0][1]["ratio"]["latency_s"] = tables.TOO_NOISY
    ratio = phase_groups(rows)[0]["methods"][0]["phases"][0]["ratio"]
    assert "latency_s" not in ratio and len(ratio["energy_j"]) == 3


def test_power_of_every_measured_method_is_there_the_baseline_first(results):
    folder, _, summary = results
    curves = power_curves(folder, tables.first_samplings(summary))
    measured = tables.first_samplings(summary).query("status == 'ok' and energy_j.notna()")
    assert len(curves) == len(measured) and curves[0]["title"].endswith("bf16")
    assert {name for name, *_ in curves[1]["spans"]} == {
        "bf16",
        curves[1]["title"].split(" · ")[1],
        "text",
        "denoise",
        "decode",
    }
    assert all(len(curve["seconds"]) == len(curve["watts"]) <= BINS for curve in curves)


def test_many_samples_become_the_mean_and_the_range_of_points():
    watts = np.random.default_rng(0).normal(100, 5, 5000)
    seconds, low, mean, high = traces.in_bins(traces.Trace(np.arange(5000) / 100, watts, []), BINS)
    assert len(seconds) == BINS and np.all(low <= mean) and np.all(mean <= high)
    assert (
        low.min() == watts.min()
        and high.max() == watts.max()
        and np.average(mean) == pytest.approx(watts.mean(), rel=1e-3)
    )
    few = traces.Trace(np.arange(3.0), np.array([1.0, 2.0, 3.0]), [])
    pd.testing.assert_series_equal(pd.Series(traces.in_bins(few, BINS)[2]), pd.Series([1.0, 2.0, 3.0]))
