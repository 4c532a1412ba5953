"""Costs of layers: one measurement per shape, alternating, with this device's kernels; gaps have a reason."""

import contextlib
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import layer_costs
import model
from quantwatt.allocate import layer_costs as costs
from quantwatt.artifacts import sensitivity_table
from quantwatt.config import experiment, mixed_entries
from quantwatt.measuring.meters import Metering, open_meter

ROOT = Path(__file__).parents[2]
W8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}
A8 = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
CANDIDATES = {
    "int8": {"weights": W8, "activations": A8},
    "static": {"weights": W8, "activations": A8 | {"granularity": "tensor", "dynamic": False}},
    "w4": {"weights": W8 | {"bits": 4}},
    "w4a8": {"weights": W8 | {"bits": 4, "granularity": "group", "group_size": 4}, "activations": A8},
    "a8": {"activations": A8},
    "float": {"weights": None, "activations": None},
}
SETTINGS = {"rounds": 3, "seconds": 0.001, "block_s": 0.02, "blocks": 2}
SHAPES = {"q": (2, 5, 16), "k": (2, 5, 16), "out": (2, 5, 24)}


def layers():
    torch.manual_seed(0)
    return {name: torch.nn.Linear(*shape) for name, shape in {"q": (16, 24), "k": (16, 24), "out": (24, 16)}.items()}


@pytest.fixture(scope="module")
def rows():
    with contextlib.closing(open_meter(Metering("estimate", idle_w=10, full_w=65))) as meter, torch.no_grad():
        found = list(costs.table(layers(), SHAPES, (), CANDIDATES, SETTINGS, meter, "cpu"))
    return {(row["layer"], row["candidate"]): row for row in found}


def test_what_has_a_kernel_is_measured_and_the_rest_says_why(rows):
    assert list(rows) == [(layer, c) for layer in SHAPES for c in ("baseline", *CANDIDATES)]
    for (_, candidate), row in rows.items():
        assert set(row) == set(sensitivity_table.COSTS)
        real = candidate in ("baseline", "int8", "static", "w4", "float")
        assert (row["milliseconds"] is not None) == (row["joules"] is not None) == (row["reason"] is None) == real
        assert not real or (row["milliseconds"] > 0 and row["joules"] > 0)
    assert rows["q", "int8"]["kernel"] == rows["q", "static"]["kernel"] in ("int8 in C or oneDNN", "oneDNN int8")
    assert rows["q", "w4"]["kernel"] == "unpack and multiply in float"
    said = "no kernel computes integer W4A8 per group with dynamic symmetric inputs per token on cpu"
    assert rows["q", "w4a8"]["reason"] == said
    assert rows["q", "a8"]["reason"] == "no kernel computes 16-bit weights with quantized inputs on cpu"


def test_megabytes_are_those_of_the_packed_weight(rows):
    assert rows["q", "baseline"]["megabytes"] == rows["q", "a8"]["megabytes"] == 16 * 24 * 4 / 1e6
    assert rows["q", "int8"]["megabytes"] == pytest.approx(24 * (16 + 4) / 1e6)


def test_layers_of_one_shape_and_input_share_a_measurement(rows):
    for candidate in ("baseline", "int8"):
        q, k, out = (rows[layer, candidate]["milliseconds"] for layer in SHAPES)
        assert q == k != out
    three = torch.nn.Linear(16, 24), torch.nn.Linear(16, 24, bias=False), torch.nn.Conv2d(4, 8, 3)
    same = {costs.shape_of(layer, (2, 16)) for layer in three}
    assert len(same) == 3 and costs.shape_of(three[0], (3, 16)) not in same
    strided = torch.nn.Conv2d(4, 8, 3, stride=2)
    assert costs.shape_of(strided, (2, 16)) != costs.shape_of(three[2], (2, 16))


def test_a_quantized_layer_multiplies_no_token_whose_product_is_stored(monkeypatch):
    torch.manual_seed(0)
    layer, inputs, tokens = torch.nn.Linear(16, 24), torch.randn(2, 5, 16), []
    kind = type(costs.build(layer, inputs, CANDIDATES["int8"], "cpu")[0])
    real = kind._product
    monkeypatch.setattr(kind, "_product", lambda own, x: tokens.append(x[..., 0].numel()) or real(own, x))
    with torch.no_grad():
        whole, apart = (costs.build(layer, inputs, CANDIDATES["int8"], "cpu", first)[0](inputs) for first in (0, 1))
        assert tokens == [2 * 5, 2 * 4] and apart.shape == whole.shape
        assert torch.equal(apart[:, 1:], whole[:, 1:])
        tokens.clear()
        found = costs.table({"k": layer, "v": layer}, dict.fromkeys("kv", (2, 5, 16)), {"v"},
                            {"int8": CANDIDATES["int8"]}, SETTINGS | {"blocks": 0}, SimpleNamespace(name="none"),
                            "cpu")  # fmt: skip
        rows = {(row["layer"], row["candidate"]): row["milliseconds"] for row in found}
    assert set(tokens) == {2 * 5, 2 * 4} and rows["k", "int8"] != rows["v", "int8"]
    assert all(rows["v", candidate] > 0 for candidate in ("baseline", "int8"))


def test_cases_take_turns_and_medians_count():
    order, cases = [], [costs.Case("k", None, lambda name=name: order.append(name)) for name in "abc"]
    cases.insert(1, costs.Case(None, "no kernel"))
    costs.measure(cases, SETTINGS | {"seconds": 1e-9}, SimpleNamespace(name="none"), lambda: None, warmup_s=0)
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert "".join(turns) == "abc" + "abcbabc"  # warm-up, then there, back and there
    assert order.count("a") > 3 * cases[0].repeats > 3  # so quick that the clock is read after many
    assert all(0 < seconds < 1e-4 for seconds in cases[0].seconds)
    assert cases[1].figures() == {"milliseconds": None, "joules": None, "kernel": None, "reason": "no kernel"}
    cases[0].seconds, cases[0].joules = [0.001, 0.5, 0.003], [4.0, 2.0]
    assert cases[0].figures() == {"milliseconds": 3.0, "joules": 3.0, "kernel": "k", "reason": None}


def test_the_first_call_of_the_denoiser_shows_the_shapes():
    network = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))

    def draw():
        network(torch.zeros(2, 5, 16))
        network(torch.zeros(1, 5, 16))

    assert costs.input_shapes(network, ["0", "1"], draw) == {"0": (2, 5, 16), "1": (2, 5, 24)}
    assert not network[0]._forward_pre_hooks


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The table of the embedded model's costs."""
    folder = tmp_path_factory.mktemp("costs")
    settings = {"family": "sd3", "path": "resources/models/tiny-sd3", "dtype": "float32", "text_encoder_3": False,
                "max_sequence_length": 1}  # fmt: skip
    with contextlib.chdir(ROOT):
        model.main(["--model", "m", "--settings", json.dumps(settings), "--output", f"{folder}/model.json"])
        entry = {"candidates": {name: CANDIDATES[name] for name in ("int8", "w4a8")}, "steps": 1, "height": 64,
                 "width": 64, "prompts": "resources/prompts/shapes-calibration.txt",
                 "costs": SETTINGS | {"rounds": 1, "blocks": 0}}  # fmt: skip
        entry = mixed_entries.complete_sensitivity(entry, "mine.yaml", "sensitivities.alone")
        measuring = experiment.load_config({})["measuring"] | {"meter": "none", "warmup_s": 0.1}
        layer_costs.main(
            ["--model", f"{folder}/model.json", "--sensitivity-name", "alone", "--sensitivity", json.dumps(entry),
             "--measuring", json.dumps(measuring), "--threads", "1", "--output", f"{folder}/costs.csv"]
        )  # fmt: skip
    return folder / "costs.csv"


def test_the_embedded_models_layers(measured):
    rows = sensitivity_table.read(measured, sensitivity_table.COSTS)
    names = [row["layer"] for row in rows if row["candidate"] == "baseline"]
    assert len(rows) == 3 * len(names) and "transformer_blocks.0.attn.to_q" in names
    for row in rows:
        assert (row["milliseconds"] is None) == (row["candidate"] == "w4a8")
        assert row["joules"] is None and row["reason"]
    with measured.open() as file:
        assert len({row["milliseconds"] for row in csv.DictReader(file)}) < len(rows) / 3  # shapes repeat
