"""A plugin is one module and one schema: a made-up metric, format, transform and solver need nothing else."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from plans import plan

from quantwatt import registry
from quantwatt.allocate import programs
from quantwatt.artifacts.errors import DataError
from quantwatt.config import metric_entries
from quantwatt.config.experiment import check_experiment, complete_method
from quantwatt.config.schemas import ConfigurationError
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format, quantize_to_nearest, stored_bits
from quantwatt.inference import kernel_choice
from quantwatt.jobs import dependencies, score_memory
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from quantwatt.report import cells, layer_table, tables

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "resources/experiments/embedded.yaml"


@pytest.fixture
def schemas(tmp_path, monkeypatch):
    """A copy of the schemas that the registry reads instead; each is read anew."""
    shutil.copytree(registry.SCHEMAS, tmp_path / "schemas")
    monkeypatch.setattr(registry, "SCHEMAS", tmp_path / "schemas")
    cached = registry.schema, dependencies.digest, metric_entries.shown
    for function in cached:
        function.cache_clear()
    yield tmp_path / "schemas"
    for function in cached:
        function.cache_clear()


@pytest.fixture
def add(tmp_path, schemas, monkeypatch):
    """Function that adds a plugin: its schema, and its file in a folder where Python also finds modules of its kind."""

    def write(kind, name, module, **schema):
        folder, package = tmp_path / kind, importlib.import_module(f"quantwatt.{registry.PACKAGES[kind]}")
        folder.mkdir(exist_ok=True)
        (folder / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(module))
        (schemas / kind / f"{name}.schema.json").write_text(json.dumps(schema))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append((package, registry.module_name(kind, name)))

    added = []
    yield write
    for package, module in added:
        if sys.modules.pop(module, None):
            delattr(package, module.rpartition(".")[2])


def settings_of(kind, name, **properties):
    key = "format" if kind == "formats" else "name"
    return {"type": "object", "properties": {key: {"const": name}, **properties}, "additionalProperties": False,
            "required": [key]}  # fmt: skip


@pytest.fixture
def octet(add):
    """A codebook of 3 bits."""
    bits = {"const": 3, "default": 3, "description": "always 3"}
    group = {"type": "integer", "minimum": 1, "default": 32, "x-other-names": ["block"]}
    add(
        "formats",
        "octet",
        """
        from dataclasses import dataclass

        import torch

        from quantwatt.formats.codebook import CodebookFormat


        @dataclass(frozen=True)
        class Format(CodebookFormat):
            codebook = torch.tensor([-1.0, -0.6, -0.3, -0.1, 0.0, 0.2, 0.5, 1.0])
        """,
        **settings_of("formats", "octet", bits=bits, group_size=group),
    )


def completed(**entry):
    return complete_method(entry, "mine.yaml", "methods.m")


def test_a_codebook_of_three_bits_counts_as_three(octet):
    weights = completed(weights={"format": "octet"})["weights"]
    weight_format, weight = load_format(weights), torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize_to_nearest(weight, weight_format)
    assert weight_format.bits == 3 and stored_bits(6, 64, weight_format) == 3 + 32 / 32
    restored = QuantizedWeight.from_state(quantized.state(weight_format), weight_format, 64).dequantize(weight_format)
    assert torch.equal(restored, quantized.dequantize(weight_format)) and len(quantized.codes.unique()) == 8
    layer = {"weights": weights, "activations": None, "in_features": 64, "out_features": 6, "parts": []}
    kernel, reason = kernel_choice.kernel_for(layer, "cpu")
    assert kernel is None and "octet W3A16" in reason
    made = cells.Cell("model", "m", "s", {"layers": {"a": layer}}, {}, {})
    assert layer_table.layers_table([made])["value_bits"].tolist() == [3]


def test_a_budget_holds_a_codebook_of_its_own_width(octet):
    candidates = {"octet": {"weights": completed(weights={"format": "octet"})["weights"]}}
    candidates["w8"] = {"weights": completed(weights={"format": "integer", "bits": 8})["weights"]}
    program = {"candidates": [*candidates], "objective": "noise", "budget": {"bits": 3}}
    method = completed(allocation={"name": "mixed", "sensitivity": "s", "programs": [program]})
    method["allocation"]["candidates"] = candidates
    scores = {"octet": {"noise": 0.2, "inputs": 1.0}, "w8": {"noise": 0.01, "inputs": 1.0}}
    layers = {name: {"in_features": 64, "out_features": 6} for name in "ab"}
    [choice] = programs.solve(layers, [dict.fromkeys(layers, scores)], None, method, "m", "float32")
    [chosen] = choice["ranges"]
    assert chosen == dict.fromkeys(layers, "octet") and choice["cost"] == 3


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"format": "octet", "block": 64}, "methods.m.weights: unknown key 'block'; write 'group_size'."),
        ({"format": "octet", "bits": 4}, "methods.m.weights.bits: 3 was expected (always 3)."),
        ({"format": "nf4", "block": 64}, "methods.m.weights: unknown key 'block'; write 'group_size'."),
        ({"format": "fp4", "block": 64}, "methods.m.weights: unknown key 'block'; write 'group_size'."),
        ({"format": "torchao", "configuration": "int4-weight-only", "group": 64}, "'group'; write 'group_size'."),
        ({"format": "quanto", "weights": "qint8", "group_size": 64}, "only qint4 and qint2 have groups; drop the key"),
    ],
)
def test_a_size_of_groups_has_one_spelling_and_a_width_is_the_formats(octet, weights, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        completed(weights=weights)


def test_the_width_of_a_format_stands_in_its_schema(add):
    for name in registry.names("formats"):
        schema = registry.schema(f"formats/{name}")
        if schema.get("x-library"):
            continue
        width = schema["properties"]["bits"]
        weights = completed(weights={"format": name} | ({} if "default" in width else {"bits": 3}))["weights"]
        assert load_format(weights).bits == weights["bits"]
    add("formats", "wide", "", **settings_of("formats", "wide"))
    with pytest.raises(ConfigurationError, match="methods.m.weights.format: the schema of 'wide' gives no 'bits'"):
        completed(weights={"format": "wide"})


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"to_q": torch.nn.Linear(32, 16)})])


def states_of(method):
    """The weight of a small denoiser's layer, its parts once a method has quantized it, and what is told of it."""
    denoiser, name = Denoiser(), "transformer_blocks.0.to_q"
    weight = denoiser.get_submodule(name).weight.detach().clone()
    allocation = {name: {"weights": method["weights"], "activations": None}}
    states, reports = sequential.quantize(denoiser, load_family("sd3"), allocation, method)
    return weight, states[name], reports[name]


SYMMETRIC = {"format": "integer", "bits": 8, "symmetric": True}


def test_a_solver_is_used_by_its_name(add):
    add(
        "solvers",
        "round-down",
        """
        from dataclasses import dataclass

        from quantwatt.formats.quantized_weight import QuantizedWeight, fit_groups
        from quantwatt.quantize.solvers import LayerSolver, Solution


        @dataclass(frozen=True, kw_only=True)
        class Solver(LayerSolver):
            def solve(self, weight, weight_format, statistics=None):
                scale, zero = fit_groups(weight, weight_format)
                return Solution(QuantizedWeight(weight_format.bracket(weight, scale, zero)[0], scale, zero))
        """,
        **settings_of("solvers", "round-down"),
    )
    weight, state, report = states_of(completed(solver={"name": "round-down"}, weights=SYMMETRIC))
    values = (state["codes"].float() - 128) * state["scale"]
    assert (values <= weight + 1e-6).all() and (weight - values < state["scale"]).all()
    assert report["weights"]["bits"] == 8


@pytest.fixture
def negate(add):
    add(
        "transforms",
        "negate",
        """
        from dataclasses import dataclass

        import torch

        from quantwatt.quantize import transforms


        @dataclass(frozen=True, kw_only=True)
        class Transform(transforms.Transform):
            def apply(self, weight, weight_format, activation_format, statistics):
                return transforms.Transformed(-weight, input_factor=-torch.ones(weight.shape[1]))
        """,
        **{"x-last": "must see what is rounded", "x-untried": "tries layers whose inputs keep their sign"},
        **settings_of("transforms", "negate"),
    )


def test_a_transform_is_used_by_its_name_and_its_place_is_its_schemas(negate):
    weight, state, _ = states_of(completed(weights=SYMMETRIC, transforms=[{"name": "negate"}]))
    values = (state["codes"].float() - 128) * state["scale"] * state["input_factor"]
    assert torch.allclose(values, weight, atol=0.01) and (state["input_factor"] == -1).all()
    with pytest.raises(
        ConfigurationError, match="methods.m.transforms: 'negate' must see what is rounded; put it last"
    ):
        completed(weights=SYMMETRIC, transforms=[{"name": "negate"}, {"name": "segments"}])


def test_a_sensitivity_may_have_a_transform_whose_schema_says_what_one_without_it_does(negate):
    raw = yaml.safe_load(EMBEDDED.read_text())
    raw["sensitivities"] = {
        "s": {
            "candidates": {"w8": {"weights": SYMMETRIC}, "w4": {"weights": {"format": "nf4"}}},
            "prompts": "resources/prompts/shapes-calibration.txt", "images": 4, "steps": 4, "guidance": 3.0,
            "height": 64, "width": 64, "transforms": [{"name": "negate"}],
        }
    }  # fmt: skip
    programs = [{"candidates": ["w8", "w4"], "objective": "noise", "budget": {"bits": 5}}]
    allocation = {"name": "mixed", "sensitivity": "s", "programs": programs}
    raw["methods"]["mixed"] = {"allocation": allocation, "transforms": [{"name": "negate"}]}
    found = check_experiment(raw, "mine.yaml")["methods"]["mixed"]
    assert found["transforms"] == [{"name": "negate"}] and "w4" in found["allocation"]["candidates"]
    raw["sensitivities"]["s"]["transforms"] = []
    with pytest.raises(
        ConfigurationError, match="'s' tries layers whose inputs keep their sign; give it that transform"
    ):
        check_experiment(raw, "mine.yaml")
    raw["sensitivities"]["s"]["transforms"] = [{"name": "smoothing"}]
    with pytest.raises(ConfigurationError, match="layers are tried with bos, negate, segments, split-skips only"):
        check_experiment(raw, "mine.yaml")


def test_a_transform_marks_layers_as_its_schema_says():
    for name in registry.names("transforms"):
        marks, kind = registry.schema(f"transforms/{name}").get("x-marks", {}), registry.load("transforms", name)
        assert [*marks] == ([kind.Transform.MARK] if kind.Transform.MARK else [])


MAE = '''
"""Mean absolute error to the baseline's image of the same prompt and seed, in levels of 8 bits."""

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_mean
from quantwatt.score.metrics import Score

UNIT, PACKAGE = "levels", "numpy"


def score(samples, compared, resamples=None, seed=0):
    """Mean over images of the error of each."""
    pairs = zip(samples, compared, strict=True)
    values = [np.abs(image.astype(float) - baseline).mean() for image, baseline in pairs]
    return Score(*bootstrap_mean(values, RESAMPLES if resamples is None else resamples, seed), resamples)
'''
MAE_SCHEMA = {
    "type": "object",
    "x-compared-with": "baseline",
    "x-higher-is-better": False,
    "x-shown": {"title": "MAE", "name": "absolute error to the unquantized image", "unit": "levels"},
    "properties": {"resamples": {"type": "integer", "minimum": 100, "default": 100}},
    "additionalProperties": False,
}
STAGES = """
import json, sys
from pathlib import Path

sys.path[:0] = ["workflow_scripts", "tests/unit"]
import synthetic_results as synthetic

import recommend, report, score, tables
from quantwatt import registry
from quantwatt.config import experiment
from quantwatt.report import figures
from quantwatt.artifacts.layout import FIGURES

results, raw = Path(sys.argv[1]), experiment.read_yaml(experiment.EXPERIMENTS / "embedded.yaml", "embedded.yaml")
completed = experiment.check_experiment(raw | {"metrics": {"mae": None}}, "embedded.yaml")
methods = {name: synthetic.METHODS[name] for name in ("bf16", "rtn-w8a8", "gptq-w4a8")}
cells = synthetic.write_tree(results, methods=methods)
for cell in cells:
    trio = "{model}/{method}/{sampling}".format(**cell)
    score.main(
        ["--metric", "mae", "--settings", json.dumps(completed["metrics"]["mae"])]
        + ["--images", f"{results}/images/{trio}/manifest.json", "--output", f"{results}/scores/{trio}/mae.json"]
        + ["--baseline", f"{results}/images/tiny-sd3/bf16/steps-20/manifest.json"]
        + ["--is-baseline"] * (cell["method"] == "bf16")
    )
grid = synthetic.write_grid(results, cells, metrics=["mae"])
tables.main(["--results", str(results), "--grid", grid])
summary = tables.tables.read_summary(results / "tables/summary.csv")
figure = registry.load("figures", "quality_vs_cost").draw(figures.Inputs(summary), narrow=False)
(results / "figures").mkdir()
for name in FIGURES:
    for end in (".svg", "-narrow.svg"):
        (results / "figures" / (name + end)).write_text("<svg/>")
recommend.main(["--results", str(results)])
report.main(["--experiment", "embedded", "--results", str(results), "--grid", grid])
said = [text for axes in figure.axes for text in (axes.get_title("left"), axes.get_title(), axes.get_ylabel())]
print(json.dumps({"figure": said, "settings": completed["metrics"]["mae"]}))
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """What a copy of the project with one more metric has written of three cells: its folder, and what it said."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "workflow_scripts", copy / "workflow_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "resources/schemas", copy / "resources/schemas")
    names = "resources/experiments resources/measurements resources/models resources/prompts resources/report tests"
    for name in names.split():
        (copy / name).symlink_to(ROOT / name)
    (copy / "workflow_scripts/quantwatt/score/metrics/mae.py").write_text(MAE)
    (copy / "resources/schemas/metrics/mae.schema.json").write_text(json.dumps(MAE_SCHEMA))
    command = [sys.executable, "-c", STAGES, str(copy / "results")]
    done = subprocess.run(command, cwd=copy, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return copy / "results", json.loads(done.stdout)


def test_a_metric_is_scored_and_stands_in_the_table(scored):
    results, said = scored
    assert said["settings"] == {"resamples": 100}
    record = json.loads((results / "scores/tiny-sd3/rtn-w8a8/steps-20/mae.json").read_text())
    assert record["unit"] == "levels" and record["higher_is_better"] is False
    assert 0 < record["low"] < record["value"] < record["high"] < 20
    summary = tables.read_table(results / "tables/summary.csv").set_index("method")
    assert summary.loc["rtn-w8a8", "mae"] == pytest.approx(record["value"], rel=1e-6)
    assert summary.loc["bf16", "mae_reason"] == "the reference itself" and "mae_change" not in summary.columns


def test_a_metric_stands_in_figures_and_report(scored):
    results, said = scored
    assert "↓ absolute error to the unquantized image (levels)" in said["figure"]
    page = (results / "report.html").read_text()
    assert '<th scope="col">MAE<small>levels</small></th>' in page
    assert re.search(r"MAE compares? with the\s+unquantized model's images of the same seeds", page)
    assert re.search(r"at a quality of MAE [\d.]+ levels \[", page)


def codes():
    """{rule: its parameter `code`} of what scores by PSNR and shows it, and of others."""
    names = {"model": "tiny-sd3", "method": "gptq-w4a8", "sampling": "steps-20", "metric": "psnr", "figure": "seeds"}
    return {rule: plan("embedded").code(rule, names) for rule in ("quantize", "score", "tables", "figure", "report")}


def test_a_metrics_words_rerun_what_shows_them_and_no_score(schemas):
    path = schemas / "metrics/psnr.schema.json"
    before = codes()
    changes = {"x-shown": {"title": "Noise"}, "x-aliases": {"snr": "write psnr"}, "x-compared-with": "text"}
    found = []
    for key, value in changes.items():
        path.write_text(
            json.dumps(json.loads((ROOT / "resources/schemas/metrics/psnr.schema.json").read_text()) | {key: value})
        )
        registry.schema.cache_clear()
        dependencies.digest.cache_clear()
        found.append({rule for rule, code in codes().items() if code != before[rule]})
    assert found == [{"tables", "figure", "report"}, set(), {"score", "tables", "figure", "report"}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x-shown": {"title": "T"}}, "new.schema.json: x-shown: missing 1 required positional argument: 'name'."),
        ({"x-shown": {"title": "T", "name": "t", "column": "fid"}}, "x-shown.column: 'fid' is also that of 'fid'."),
        ({"x-higher-is-better": None}, "resources/schemas/metrics/new.schema.json: x-higher-is-better: missing."),
        ({"x-compared-with": None}, "resources/schemas/metrics/new.schema.json: x-compared-with: missing."),
    ],
)
def test_a_schema_that_says_too_little_of_a_metric_is_refused(schemas, changes, words):
    entry = {key: value for key, value in (MAE_SCHEMA | changes).items() if value is not None}
    (schemas / "metrics/new.schema.json").write_text(json.dumps(entry))
    with pytest.raises(DataError, match=re.escape(words)):
        metric_entries.shown()


def test_a_metrics_memory_is_what_its_schema_says(schemas):
    features = {"n_images": 5000, "files": {"a.safetensors": {"bytes": 4_000_000}}}
    entry = MAE_SCHEMA | {"x-compared-with": "reference", "x-features": "judge"}
    found = []
    for pairs in (
        {},
        {"x-pairs": {"matrices": 2, "most_images": 5000}},
        {"x-pairs": {"matrices": 2, "most_images": 10}},
    ):
        (schemas / "metrics/new.schema.json").write_text(json.dumps(entry | pairs))
        registry.schema.cache_clear()
        found.append(score_memory.score_memory_mb("new", features, [features]))
    assert found == [1500 + 32, 1500 + 32 + 400, 1500 + 16]


def test_every_metric_describes_itself():
    compared = {"baseline", "predictions", "text", "classes", "reference", "moments", "quality", "nothing"}
    for name in registry.names("metrics"):
        schema, module = registry.schema(f"metrics/{name}"), registry.load("metrics", name)
        assert module.UNIT and module.PACKAGE and metric_entries.compared_with(name) in compared
        known = (None, "distance", "judge", "classifier", *registry.names("extractors"))
        assert (features := metric_entries.features_of(name)) in known
        assert features or metric_entries.compared_with(name) in ("baseline", "predictions")
        assert (schema.get("x-kind") == "text") == (metric_entries.compared_with(name) == "predictions")
        assert hasattr(module, "change") != metric_entries.shown()[name].paired
    assert len(set(tables.SUMMARY_COLUMNS)) == len(tables.SUMMARY_COLUMNS)


def test_no_module_knows_a_metric_by_its_name():
    own = {"psnr", "ssim"}  # measures of sensitivities, too
    names = set(registry.names("metrics")) - own
    package = ROOT / "workflow_scripts/quantwatt"
    for path in set(package.rglob("*.py")) - set((package / "report/studies").iterdir()):  # papers' own columns
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        assert not names.intersection(value for value in constants if isinstance(value, str)), path
    assert not re.search(rf"[\"'](?:{'|'.join(names | own)})[\"']", (ROOT / "rules/common.smk").read_text())
