"""The widest format that each metric tells apart from the unquantized model."""

import math

import pandas as pd
import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.report import tables
from quantwatt.report.told_apart import told_apart
from tools import told_apart as tool

METHODS = ["float32", "w2", "w8", "w4"]  # in no order
BITS = [32.0, 2.2, 8.2, 4.2]


def summary(images, changes):
    """A table whose CLIP score changes by `changes` of the quantized methods, each with +-0.5."""
    table = pd.DataFrame({"model": "m", "sampling": f"n{images}", "status": "ok", "baseline": "float32",
                          "method": METHODS, "weight_bits": BITS, "n_images": images,
                          "clip_score": 90.0, "psnr_db": [math.nan, 20.0, 50.0, 49.9]})  # fmt: skip
    for end, offset in (("low", -0.5), ("high", 0.5)):
        table[f"clip_score_change_{end}"] = [math.nan, *(change + offset for change in changes)]
    return table


def pairs(images, **differences):
    rows = [
        {"model": "m", "sampling": f"n{images}", "method": one, "other": other, "psnr_db_difference_low": low,
         "psnr_db_difference_high": high}
        for (one, other), (low, high) in differences["of"].items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


FEW = summary(64, [-3, 0.1, -0.4]), pairs(64, of={("w2", "w8"): (-31, -29), ("w8", "w4"): (-0.2, 0.4)})
MANY = summary(256, [-3, 0.1, -0.6]), pairs(256, of={("w2", "w8"): (-31, -29), ("w8", "w4"): (0.05, 0.2)})
BOTH = [pd.concat(tables_of, ignore_index=True) for tables_of in zip(FEW, MANY, strict=True)]


def test_more_images_see_wider_formats():
    found = told_apart(*BOTH).set_index(["metric", "images"])
    titles = [tables.METRICS[name].title for name in ("psnr", "clip-score")]
    assert found["seen_bits"].to_dict() == {
        (titles[0], 64): 2.2, (titles[0], 256): 4.2, (titles[1], 64): 2.2, (titles[1], 256): 4.2,
    }  # fmt: skip
    assert found.loc[(titles[1], 64), ["seen", "not_seen"]].tolist() == ["w2", "w8, w4"]
    assert found.loc[(titles[0], 256), ["seen", "not_seen"]].tolist() == ["w4, w2", ""]


def test_what_has_no_interval_is_neither_seen_nor_not():
    table, others = FEW
    [row] = told_apart(table.drop(columns="clip_score"), others.iloc[:0]).to_dict("records")
    assert math.isnan(row["seen_bits"]) and row["seen"] == row["not_seen"] == ""
    found = told_apart(table.assign(status=["ok", "oom", "ok", "ok"]), others)
    assert "w2" not in " ".join(found["seen"] + found["not_seen"])


def test_the_table_is_printed_and_written(tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    with pytest.raises(DataError, match="summary.csv: there is no such table"):
        tool.main(["--results", str(tmp_path)])
    for name, table in zip(("summary", "pairs"), BOTH, strict=True):
        tables.write_table(tmp_path / f"tables/{name}.csv", table)
    tool.main(["--results", str(tmp_path), "--output", str(tmp_path / "told.csv")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("m: bits of the widest format") and lines[1].split() == ["64", "256"]
    assert [line.split()[-2:] for line in lines[2:]] == [["2.20", "4.20"], ["2.20", "4.20"]]
    assert len(tables.read_table(tmp_path / "told.csv")) == 4
