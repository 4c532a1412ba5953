"""The benchmark of solvers in each format: every format meets integers whose groups are as wide, in turns."""

import json

import pytest

from benchmarks import bench_solver_formats, bench_solvers


def test_a_row_is_of_turns_in_which_both_were_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench_solvers.LAYERS, "1536 to 6144", (256, (64,)))
    output = tmp_path / "rows.json"
    names = ["mxfp4", "q6_k"]
    bench_solver_formats.main(["--formats", *names, "--tokens", "300", "--repetitions", "2", "--output", str(output)])
    rows = json.loads(output.read_text())
    assert [(row["format"], row["solver"]) for row in rows] == [
        (name, solver) for name in names for solver in bench_solver_formats.SOLVERS
    ]
    for row in rows:
        assert row["turns"] == 2 and 0 < row["solve_s"] < row["seconds"] and row["integer_solve_s"] > 0
        assert row["least_ratio"] <= row["ratio"] <= row["most_ratio"]
    assert capsys.readouterr().out.count("times the integers' time") == len(rows)


def test_a_ratio_is_the_median_of_those_of_single_turns():
    turns = [[(3.0, 2.0), (2.0, 1.0)], [(8.0, 4.0), (4.0, 2.0)], [(1.0, 0.5), (1.0, 0.5)]]
    row = bench_solver_formats.row_of("layer", 5, "mxfp4", "gptq", turns)
    assert (row["ratio"], row["least_ratio"], row["most_ratio"]) == pytest.approx((1.5, 1.0, 2.0))
    assert (row["seconds"], row["solve_s"], row["integer_seconds"]) == (3.0, 2.0, 2.0)
