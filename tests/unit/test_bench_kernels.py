"""The benchmark of kernels: blocks by their width, shares of the peak throughput, and output files."""

import pytest
import torch

from benchmarks import bench_kernels, harness, layer_speed, model_speed, peers
from quantwatt.artifacts import manifest
from quantwatt.inference import kernel_choice
from quantwatt.measuring import processes
from quantwatt.measuring.settings import Measuring

FEW = {name: layer_speed.FORMATS[name] for name in ("W8A8", "W4A16 group 128")}


def test_blocks_by_width_take_turns_with_their_floats():
    rows = list(model_speed.widths("cpu", torch.float32, [64], rounds=2, turn_s=0.001, tokens={4: 3}))
    assert [row["configuration"] for row in rows] == [peers.FLOAT32, peers.BFLOAT16, model_speed.QUANTIZED]
    for row in rows:
        assert tuple(row) == model_speed.COLUMNS and row["ms"] > 0 and row["pairs"] == 2
        assert row["ratio_to_fp32_low"] <= row["ratio_to_fp32"] <= row["ratio_to_fp32_high"]
    assert rows[0]["ratio_to_fp32"] == rows[1]["ratio_to_bf16"] == 1 and rows[2]["kernel"] != "torch linear"


def test_a_blocks_layers_are_all_quantized_and_close_to_the_float_block():
    block, inputs = model_speed.block(64), model_speed.block_inputs(64, 6, 4)
    with torch.no_grad():
        text, image = block(**inputs)
        model_speed.quantize(block, lambda: block(**inputs), "cpu")
        quantized_text, quantized_image = block(**inputs)
    assert not [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
    for own, expected in ((quantized_text, text), (quantized_image, image)):
        assert 0 < (own - expected).norm() / expected.norm() < 0.05


def test_a_block_without_kernels_says_so(monkeypatch):
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})
    rows = list(model_speed.widths("cpu", torch.float32, [64], rounds=2, turn_s=0.001, tokens={4: 3}))
    assert rows[2]["ms"] is rows[2]["ratio_to_fp32"] is None
    assert rows[2]["reason"].startswith("no kernel computes integer W8A8")


def found_at(speeds, spread=0.01):
    """Rows of one number of tokens with given speeds of W8A8 by width, three pairs each."""
    noise = [1 - spread, 1, 1 + spread]
    for width, speed in speeds.items():
        floats = {name: ("k", name, [[s] for s in (1.0, 1.0, 1.0)], None) for name in (peers.FLOAT32, peers.BFLOAT16)}
        own = {model_speed.QUANTIZED: ("k", "float32", [[n / speed] for n in noise], None)}
        yield from model_speed.rows_of("block", "cpu", width, 64, floats | own)


def test_the_interval_decides_from_which_width_it_pays():
    assert model_speed.pays_from(found_at({128: 0.5, 256: 1.5, 512: 2.0})) == 256
    assert model_speed.pays_from(found_at({128: 1.5, 256: 0.9, 512: 2.0})) == 512
    assert model_speed.pays_from(found_at({128: 0.5, 256: 1.01}, spread=0.1)) is None
    row = next(row for row in found_at({128: 2.0}) if row["configuration"] == model_speed.QUANTIZED)
    assert row["ratio_to_bf16"] == pytest.approx(2, rel=1e-3) and row["ms"] == pytest.approx(500)
    assert row["ratio_to_bf16_low"] < 2 < row["ratio_to_bf16_high"]


def test_the_share_is_of_the_peak_of_what_is_multiplied():
    rates = {"float32": 100.0, "bfloat16": 200.0, "int8": 400.0}
    shares = {name: bench_kernels.share_of_peak({"format": name, "gops": 100.0}, rates)
              for name in ("W8A8 static", "W4A4", "W4A16 group 128", "float8", "nf4")}  # fmt: skip
    assert shares == {"W8A8 static": 0.25, "W4A4": 0.25, "W4A16 group 128": 0.5, "float8": None, "nf4": 0.5}
    assert bench_kernels.share_of_peak({"format": "nf4", "gops": None}, rates) is None


def test_the_benchmark_writes_rows_machine_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_kernels, "LAYERS", {"one": (128, 64)})
    monkeypatch.setattr(bench_kernels, "MODULATION", (64, 128))
    monkeypatch.setattr(bench_kernels, "SUMMED_UP", 3)
    monkeypatch.setattr(bench_kernels, "DRAWN", (1, 3))
    monkeypatch.setattr(layer_speed, "FORMATS", FEW)
    monkeypatch.setattr(peers, "LIBRARIES", {})
    monkeypatch.setattr(model_speed, "TOKENS", {4: 3})
    output = tmp_path / "kernels.json"
    bench_kernels.main(
        ["--layers", "one", "--tokens", "1", "3", "--widths", "64", "--rounds", "2", "--turn-s", "0.001", "--eager",
         "--processes", "0", "--peak-sizes", "16", "--output", str(output)]
    )  # fmt: skip
    rows = manifest.read_json(output)
    assert all(list(row) == [*list(rows[0])[:-1], "share_of_peak"] for row in rows)
    shapes = {(row["tokens"], row["in_features"], row["out_features"]) for row in rows}
    assert shapes == {(1, 128, 64), (3, 128, 64), (1, 64, 128)}
    machine = manifest.read_json(tmp_path / "kernels.machine.json")
    assert machine["peak_gops"]["float32"] > 0 and machine["versions"]["torch"]
    assert [row["part"] for row in manifest.read_json(tmp_path / "pipeline.json")] == ["block"] * 3
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert told.startswith("At best: float32 ") and "W8A8, " in told and "A block of 4 image tokens in W8A8" in told


def test_a_figure_of_gaps_is_drawn(tmp_path):
    rows = [{"format": "W8A8", "tokens": 1, "ratio_to_fp32": None, "reason": "no kernel"}]
    bench_kernels.draw(rows, [], tmp_path / "kernels.json")
    assert (tmp_path / "kernels.png").exists()


def test_an_unfinished_figure_is_not_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), harness.figure(tmp_path / "a.json", (1, 1)):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_embedded_models_processes_take_turns(monkeypatch):
    seconds, order = {peers.FLOAT32: 0.4, peers.BFLOAT16: 0.2, model_speed.QUANTIZED: 0.1}, []

    def process(self, task):
        told = Measuring.from_settings(task["measuring"])  # as the process reads it
        assert (told.processes, told.limit_s, told.precision, told.phases_s) == (2, 1, 0, 0)
        order.append(list(task["checkpoints"]))
        for name, path in task["checkpoints"].items():
            details = manifest.read_json(path)
            assert details["status"] == "ok" and bool(details["layers"]) == (name == model_speed.QUANTIZED)
            assert details["model_settings"]["dtype"] == ("bfloat16" if name == peers.BFLOAT16 else "float32")
        runs = [{"side": name, "seconds": seconds[name] * drift} for drift in (0.9, 1.0, 1.1) for name in seconds]
        return {"status": "ok", "reason": None, "runs": runs}

    monkeypatch.setattr(processes.Processes, "forked", process)
    args = bench_kernels.parse_arguments(["--processes", "2", "--latency-s", "1", "--steps", "1"])
    rows = {row["configuration"]: row for row in bench_kernels.pipeline(args)}
    assert order == [list(seconds)] * 2
    mine = rows[model_speed.QUANTIZED]
    assert tuple(mine) == model_speed.COLUMNS and mine["pairs"] == 2 and mine["ms"] == pytest.approx(100)
    assert mine["ratio_to_bf16"] == pytest.approx(2) and mine["ratio_to_fp32"] == pytest.approx(4)
    said = "100 ms an image, 2.00 [2.00, 2.00] times bfloat16, 4.00 [4.00, 4.00] times float32"
    assert bench_kernels.spoken(mine) == said


def test_a_kernel_is_held_against_libraries_at_every_size():
    def row(kernel, name, ms, error, tokens):
        return {"kernel": kernel, "format": name, "ms": ms, "relative_error": error, "tokens": tokens,
                "in_features": 8, "out_features": 8}  # fmt: skip

    own, peer = bench_kernels.OWN[0], "torch quantize_dynamic"
    rows = [
        *(row(own, "W8A8", 1.0, 0.01, tokens) for tokens in (1, 64)),
        *(row(own, "W8A8 static", 0.1, 0.01, tokens) for tokens in (1, 64)),  # another format
        row(bench_kernels.OWN[1], "W8A8", 0.5, 0.01, 1),  # our second kernel
        row(peer, "W8A8 per tensor", 1.5, 0.02, 1),
        row(peer, "W8A8 per tensor", 0.9, 0.02, 64),
        row("nothing", "W8A8", None, None, 64),
        row("another", "W4A16", 1, 0.1, 64),
    ]
    assert list(bench_kernels.against_peers(rows)) == [
        "W8A8 against torch quantize_dynamic: 0.90 to 1.50 times its speed at 2 sizes, at 0.50 of its error."
    ]
