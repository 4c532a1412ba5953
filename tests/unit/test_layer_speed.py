"""Speeds of layers: rows of every implementation, exact ratios on a virtual clock, and calls that are left out."""

import pytest
import torch

from benchmarks import layer_speed, peers
from quantwatt.inference import kernel_choice, probe
from tools import list_kernels

KEYS = (
    "device format kernel provider dtype tokens in_features out_features ms ms_p10 ms_p90 rounds ratio_to_bf16 "
    "ratio_to_bf16_prepacked ratio_to_fp32 gops relative_error reason"
).split()
FEW = {name: layer_speed.FORMATS[name] for name in ("W8A8", "W4A16 group 128")}


class Clock:
    """Seconds that only the layers' own work moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def layer(self, linear, seconds, factor=1.0):
        """A layer that takes `seconds` and whose outputs are off by a factor."""
        calls = []

        def product(inputs):
            calls.append(len(inputs))
            self.now += seconds(len(inputs)) if callable(seconds) else seconds
            return factor * linear(inputs.float())

        return product, calls


@pytest.fixture
def linear():
    return layer_speed.random_layer(16, 8)


def contender(name, layer, **changed):
    return layer_speed.Contender(name, name, "p", torch.float32, layer, **changed)


def rows_of(found, linear, tokens, clock, **settings):
    settings = {"rounds": 3, "turn_s": 0.01, **settings}
    return list(layer_speed.rows_of(found, linear, torch.randn(tokens, 16), "cpu", clock=clock, **settings))


def test_ratios_are_speeds_and_errors_relative(linear):
    clock = Clock()
    seconds = {peers.FLOAT32: 0.08, peers.BFLOAT16: 0.02, peers.PREPACKED: 0.015, "mine": 0.01}
    found = [contender(name, clock.layer(linear, s, 1.5 if name == "mine" else 1)[0]) for name, s in seconds.items()]
    rows = rows_of(found, linear, 5, clock)
    assert all(list(row) == KEYS for row in rows)
    mine = rows[-1]
    assert mine["ms"] == pytest.approx(10) and mine["ms_p10"] == pytest.approx(10) and mine["rounds"] == 3
    assert [mine[ratio] for ratio in layer_speed.RATIOS] == pytest.approx([2, 1.5, 8])
    assert mine["relative_error"] == pytest.approx(0.5) and rows[0]["relative_error"] == 0
    assert mine["gops"] == pytest.approx(2 * 5 * 16 * 8 / 0.01 / 1e9)
    assert [row["ratio_to_fp32"] for row in rows] == pytest.approx([1, 4, 8 / 1.5, 8])


def test_a_slow_call_is_not_repeated_and_a_slower_one_not_made(linear):
    clock = Clock()
    layer, calls = clock.layer(linear, lambda tokens: 10.0 * tokens)
    found = [contender("slow", layer)]
    [row] = rows_of(found, linear, 1, clock, limit_s=20, give_up_s=120)
    assert (row["ms"], row["reason"]) == (pytest.approx(10_000), None) and len(calls) > 3
    calls.clear()
    [row] = rows_of(found, linear, 4, clock, limit_s=20, give_up_s=120)
    assert (row["ms"], row["rounds"]) == (40_000, 1) and calls == [4]
    assert row["reason"] == "called once: a call takes more than 20 s"
    [row] = rows_of(found, linear, 13, clock, limit_s=20, give_up_s=120)
    assert row["ms"] is row["relative_error"] is None and calls == [4] and "left out" in row["reason"]
    assert [row[ratio] for ratio in layer_speed.RATIOS] == [None] * 3


def test_what_is_compiled_by_its_first_call_is_timed_by_the_second(linear):
    clock = Clock()
    times = iter([30.0, *[0.01] * 1000])
    layer, _ = clock.layer(linear, lambda tokens: next(times))
    [row] = rows_of([contender("compiled", layer, compiles=True)], linear, 2, clock)
    assert row["ms"] == pytest.approx(10) and row["reason"] is None


def test_a_layer_that_fails_says_why_in_its_own_words(linear):
    def failing(inputs):
        raise RuntimeError("not on this CPU.\nCall stack")

    [row] = rows_of([contender("failing", failing)], linear, 2, Clock())
    assert (row["ms"], row["rounds"], row["reason"]) == (None, 0, "not on this CPU")


def test_kernels_and_peers_of_this_machine():
    others = {name: peers.LIBRARIES[name] for name in ("torch quantize_dynamic", "torchao float8-dynamic")}
    rows = list(
        layer_speed.table([(128, 64)], [1, 3], "cpu", torch.float32, FEW, others, rounds=1, turn_s=0.001)
    )  # fmt: skip
    assert {row["tokens"] for row in rows} == {1, 3}
    by_name = {(row["format"], row["kernel"]): row for row in rows}
    assert {"float32", "bfloat16", *FEW, *(entry[0] for entry in others.values())} == {name for name, _ in by_name}
    for row in rows:
        assert list(row) == KEYS and (row["ms"] is None) == (row["relative_error"] is None)
        assert (row["ms"] is None) <= bool(row["reason"])
    assert by_name["float32", "float32"]["ratio_to_fp32"] == 1
    computed = [row for row in rows if row["format"] == "W8A8" and row["ms"]]
    assert computed and all(0 < row["relative_error"] < 0.02 for row in computed)
    assert 0 < by_name["W8A8 per tensor", "torch quantize_dynamic"]["relative_error"] < 0.05
    assert "float8-dynamic on cpu" in by_name["float8", "torchao float8-dynamic"]["reason"]


def test_a_wrong_kernel_is_shown_as_refused(monkeypatch, linear):
    from quantwatt.inference.kernels import int_mm

    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {"integer": ["int_mm"]}})
    product = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda codes, weight: product(codes, weight) // 2)
    probe._trial.cache_clear()
    rows = layer_speed.table([(16, 8)], [2], "cpu", torch.float32, FEW, {}, rounds=1, turn_s=0.001)
    found = {row["format"]: row for row in rows}
    probe._trial.cache_clear()
    assert found["W8A8"]["kernel"] == int_mm.NAME and found["W8A8"]["ms"] is None
    assert found["W8A8"]["reason"].startswith("torch._int_mm computes something else: its outputs are off by 0.")
    assert found["W4A16 group 128"]["kernel"] is None
    assert found["W4A16 group 128"]["reason"].startswith("no kernel computes integer W4A16 per group on cpu")


def test_the_table_names_every_format_and_why_it_has_no_kernel(capsys, monkeypatch):
    monkeypatch.setattr(list_kernels, "SHAPE", (128, 64))
    monkeypatch.setattr(list_kernels, "TOKENS", (1, 2))
    monkeypatch.setattr(peers, "LIBRARIES", {})
    list_kernels.main(["--threads", str(torch.get_num_threads())])
    told = capsys.readouterr().out
    listed = [line for line in told.splitlines() if line.startswith(tuple(layer_speed.FORMATS))]
    for name in layer_speed.FORMATS:
        assert any(line.startswith(f"{name}  ") for line in listed), name
    assert "bfloat16" in told and f"{torch.get_num_threads()} threads" in told


def test_reasons_stand_below_the_table_once():
    common = {"provider": None, "ratio_to_bf16": None, "relative_error": None, "ms": None}
    rows = [{**common, "format": f, "kernel": k, "tokens": n, "reason": "no compiler"}
            for f, k in (("W8A8", "a"), ("W4A8", None)) for n in list_kernels.TOKENS]  # fmt: skip
    told = list(list_kernels.lines(rows))
    assert len(told) == 4 and told[-1] == "\nW8A8 by a, W4A8: no compiler."
