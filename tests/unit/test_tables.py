import json
import math

import pandas as pd
import pytest
import synthetic_results as synthetic

import summarize
from quantwatt import tables
from quantwatt.manifest import DataError

OOM = ("oom", "out of memory: 23.1 GB asked, 21.9 GB free")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    results = tmp_path_factory.mktemp("tables") / "embedded"
    failures = {"gptq-w2a16": OOM, "nf4": ("unsupported", "bitsandbytes is not installed")}
    cells = synthetic.write_tree(results, failures=failures, with_images=False)
    arguments = ["--results", results, "--cells", json.dumps(cells), "--metrics", json.dumps(synthetic.METRICS)]
    summarize.main([str(a) for a in [*arguments, "--baseline", "bf16"]])
    return results, cells


@pytest.fixture(scope="module")
def summary(tree):
    return tables.read_table(tree[0] / "tables" / "summary.csv")


def row(summary, method):
    return summary[summary["method"] == method].iloc[0]


def small_tree(results, **settings):
    """The summary of a tree with given settings, straight from the JSON."""
    cells = synthetic.write_tree(results, with_images=False, **settings)
    return tables.summary_table(tables.read_cells(results, cells, synthetic.METRICS), "bf16")


def test_one_row_per_cell_in_order_with_every_column(summary):
    assert list(summary["method"]) == list(synthetic.METHODS)
    assert list(summary.columns) == tables.SUMMARY_COLUMNS
    for name in (*tables.METRIC_COLUMNS.values(), "latency_s", "energy_j", "memory_mb"):
        assert {name, f"{name}_low", f"{name}_high", f"{name.removesuffix('_db')}"} & set(summary.columns)


def test_a_measured_row_is_complete(summary):
    found = row(summary, "rtn-w8a8")
    assert (found["status"], found["compute"], found["kernel"]) == ("ok", "real", "torch._int_mm")
    assert found["size_mb"] == 3.71
    assert found["energy_j_low"] < found["energy_j"] < found["energy_j_high"]
    assert found["energy_estimated"] is True
    assert found["features"] == "judge"
    assert found["n_blocks"] == synthetic.BLOCKS - 1  # a void block does not count


def test_ratio_and_verdict_come_from_the_blocks(summary):
    found = row(summary, "rtn-w8a8")
    assert found["energy_ratio"] == pytest.approx(0.8)
    assert found["energy_ratio_low"] < found["energy_ratio"] < found["energy_ratio_high"] < 1
    assert (found["verdict"], found["latency_verdict"]) == ("better", "better")
    assert row(summary, "bf16")["verdict"] == "baseline"
    assert found["break_even_images"] == math.ceil(96 / (1.1 - 0.88))


@pytest.mark.parametrize("column", ["latency_s", "energy_j", "memory_mb", "mean_w", "energy_ratio", "verdict"])
def test_a_simulated_method_has_no_cost(summary, column):
    found = row(summary, "rtn-w4a8")
    assert found["status"] == "simulated"
    assert pd.isna(found[column])
    assert "no kernel" in found["energy_reason"] and "no kernel" in found["latency_reason"]
    assert found["psnr_db"] == 31.4 and found["size_mb"] == 2.02


def test_nothing_is_zero_for_missing(tree):
    text = (tree[0] / "tables" / "summary.csv").read_text().splitlines()
    header, oom = text[0].split(","), next(line for line in text if ",gptq-w2a16," in line)
    fields = dict(zip(header, next(iter(pd.read_csv(pd.io.common.StringIO(f"{text[0]}\n{oom}"), dtype=str).values)),
                      strict=True))  # fmt: skip
    for column in ("energy_j", "latency_s", "memory_mb", "fid", "psnr_db", "energy_estimated"):
        assert pd.isna(fields[column])
    assert fields["reason"] == OOM[1] and fields["fid_reason"] == OOM[1]


def test_the_baseline_has_no_psnr_and_says_why(summary):
    found = row(summary, "bf16")
    assert pd.isna(found["psnr_db"]) and found["psnr_db_reason"] == "the reference itself"


def test_an_unsupported_method_has_no_size(summary):
    found = row(summary, "nf4")
    assert found["status"] == "unsupported" and pd.isna(found["size_mb"])


def test_change_of_fid_has_an_interval(summary):
    found = row(summary, "rtn-w2a16")
    assert found["fid_change"] == pytest.approx(11.0)
    assert found["fid_change_low"] == pytest.approx(11.0 - math.hypot(0.3, 0.3))


def test_layers(tree):
    layers = tables.read_table(tree[0] / "tables" / "layers.csv")
    assert list(layers.columns) == tables.LAYER_COLUMNS
    assert len(layers) == 8 * len(synthetic.LAYERS)  # neither the baseline nor the unsupported method has any
    assert layers["damping"].notna().sum() == 3 * len(synthetic.LAYERS)


def test_a_missing_file_is_named(tree):
    results, cells = tree
    with pytest.raises(DataError, match="missing-method/manifest.json: the file does not exist"):
        tables.read_cells(results, [*cells, cells[0] | {"method": "missing-method"}], synthetic.METRICS)
    with pytest.raises(DataError, match="sharpness.json"):
        tables.read_cells(results, cells, ["sharpness"])


def test_only_listed_cells_enter(tree):
    results, cells = tree
    found = tables.summary_table(tables.read_cells(results, cells[:2], ["fid"]), "bf16")
    assert list(found["method"]) == ["bf16", "rtn-w8a8"]
    assert found["psnr_db"].isna().all()


def test_other_prompts_are_refused(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    path = tmp_path / "images/tiny-sd3/nf4/steps-20/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts_sha256": "other"}))
    with pytest.raises(DataError, match="nf4 was given other prompts"):
        tables.read_cells(tmp_path, cells, [])


def test_a_file_of_another_cell_is_refused(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    folder = tmp_path / "checkpoints/tiny-sd3"
    (folder / "nf4/manifest.json").write_text((folder / "bf16/manifest.json").read_text())
    with pytest.raises(DataError, match="belongs to method 'bf16', not 'nf4'"):
        tables.read_cells(tmp_path, cells, [])


def test_another_device_is_another_group_without_ratio(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    found = small_tree(tmp_path, device=devices)
    assert pd.isna(row(found, "rtn-w8a8")["energy_ratio"])
    assert "another device" in row(found, "rtn-w8a8")["ratio_reason"]
    groups = dict(tables.groups(found))
    assert [len(rows) for rows in groups.values()] == [9, 1]
    assert "Example GPU 3f9a1c" in list(groups)[1]


def test_rows_without_a_device_join_the_only_group(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w4a8": {"name": None, "kind": "cpu"}}
    assert len(tables.groups(small_tree(tmp_path, device=devices))) == 1


def test_unreadable_energy_keeps_time(tmp_path):
    found = row(small_tree(tmp_path, meter="rapl", energy_reason="/sys/class/powercap is unreadable"), "rtn-w8a8")
    assert pd.isna(found["energy_j"]) and found["energy_reason"] == "/sys/class/powercap is unreadable"
    assert found["latency_ratio"] < 1 and found["latency_verdict"] == "better"
    assert pd.isna(found["energy_ratio"])


def test_without_blocks_the_latency_ratio_uses_the_medians(tmp_path):
    cells = synthetic.write_tree(tmp_path, meter="none", energy_reason="meter: none", with_images=False)
    for path in tmp_path.glob("measurements/*/*/*/measurement.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"blocks": []}))
    found = row(tables.summary_table(tables.read_cells(tmp_path, cells, []), "bf16"), "rtn-w8a8")
    assert found["latency_ratio"] == pytest.approx(0.048 / 0.061)
    assert found["latency_ratio_low"] < found["latency_ratio"] < found["latency_ratio_high"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.9, "better"), (1.1, 1.2, "worse"), (0.9, 1.1, tables.UNDECIDED), (math.nan, math.nan, None)],
)
def test_verdict(low, high, verdict):
    assert tables.judge(low, high) == verdict
