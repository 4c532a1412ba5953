"""The benchmark of whole transformers: its workers and rows at a tiny size, and rows computed from made-up turns."""

import json
import subprocess
from pathlib import Path

import preloaded
import pytest

from benchmarks import bench_transformers as bench

SCRIPT = Path(bench.__file__)


def turn(seconds, joules=None, peak=100.0):
    return {"status": "ok", "reason": None, "kernel": "k", "seconds": [seconds] * 5, "peak_mb": peak,
            "energy_j": joules, "energy_reason": None, "meter": "nvml", "estimated": False}  # fmt: skip


def test_ratios_are_to_16_bit_in_the_same_mode():
    found = {
        ("bf16", False, 1): [turn(0.4, 8.0), turn(0.44, 8.8)],
        ("bf16", True, 1): [turn(0.2, 4.0), turn(0.22, 4.4)],
        ("nf4", True, 1): [turn(0.1, 3.0, 30.0), turn(0.11, 3.3, 35.0)],
    }
    row = bench.row_of(("nf4", True, 1), found)
    assert row["ratio_to_bf16"] == pytest.approx(2) and row["ratio_to_bf16_low"] == pytest.approx(2)
    assert row["energy_ratio_to_bf16"] == pytest.approx(0.75) and row["memory_ratio_to_bf16"] == 0.35
    assert row["ms"] == pytest.approx(105) and row["ms_low"] < 105 < row["ms_high"]
    assert row["energy_j"] == pytest.approx(3.15) and row["turns"] == 2


def test_a_configuration_that_does_not_fit_is_a_row_with_its_reason():
    failed = {"status": "oom", "reason": "CUDA out of memory"}
    row = bench.row_of(("nf4", False, 4), {("nf4", False, 4): [failed]})
    assert row == {"configuration": "nf4", "compiled": False, "batch": 4, **failed}


def test_a_run_at_a_tiny_size(tmp_path):
    settings = {"meter": "estimate", "warmup_s": 0.01, "latency_s": 0.05, "block_s": 0.05, "idle_w": 5, "full_w": 20}
    output = tmp_path / "transformers.json"
    names = ["bf16", "nf4", "torchao float8-dynamic"]
    command = [preloaded.jobs().python, SCRIPT, "--size", "tiny", "--device", "cpu", "--batch", "1", "--turns", "2"]
    command += ["--configurations", *names, "--settings", json.dumps(settings), "--output", output]
    subprocess.run([*command, "--eager-only"], check=True)
    rows = {row["configuration"]: row for row in json.loads(output.read_text())}
    assert list(rows) == names
    for name in ("bf16", "nf4"):
        assert rows[name]["ms"] > 0 and rows[name]["peak_mb"] > 0 and rows[name]["energy_j"] > 0
        assert rows[name]["estimated"] and rows[name]["turns"] == 2
    assert rows["nf4"]["kernel"] == "unpack and multiply in float" and rows["nf4"]["ratio_to_bf16"] > 0
    refused = rows["torchao float8-dynamic"]
    assert refused["status"] == "unsupported" and "cannot compute float8-dynamic on cpu" in refused["reason"]
    assert json.loads(output.with_suffix(".machine.json").read_text())["versions"]["torch"]
