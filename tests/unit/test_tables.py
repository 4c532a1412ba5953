import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic

import tables as tables_rule
from quantwatt.artifacts import csv_files
from quantwatt.artifacts.errors import DataError
from quantwatt.report import layer_table, tables
from quantwatt.report.cells import read_cells

OOM = ("oom", "out of memory: 23.1 GB asked, 21.9 GB free")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    results = tmp_path_factory.mktemp("tables") / "embedded"
    failures = {"gptq-w2a16": OOM, "nf4": ("unsupported", "bitsandbytes is not installed")}
    cells = synthetic.write_tree(results, failures=failures, with_images=False)
    tables_rule.main(["--results", str(results), "--grid", synthetic.write_grid(results, cells)])
    return results, cells


@pytest.fixture(scope="module")
def summary(tree):
    return tables.read_summary(tree[0] / "tables" / "summary.csv")


def row(summary, method):
    return summary[summary["method"] == method].iloc[0]


def small_tree(results, **settings):
    """The summary of a tree with given settings, straight from the JSON."""
    cells = synthetic.write_tree(results, with_images=False, **settings)
    return tables.summary_table(read_cells(results, cells, synthetic.METRICS), "bf16")


def test_one_row_per_cell_in_order_with_every_column(summary):
    assert list(summary["method"]) == list(synthetic.METHODS)
    assert set(summary.columns) == set(tables.SUMMARY_COLUMNS)
    for name in (*(metric.column for metric in tables.METRICS.values()), "latency_s", "energy_j", "memory_mb"):
        assert {name, f"{name}_low", f"{name}_high"} <= set(summary.columns)


def test_the_file_has_no_columns_of_metrics_that_were_not_scored(tree, summary):
    """So that a metric added changes no summary of experiments without it, and older ones are read."""
    written = tables.read_table(tree[0] / "tables" / "summary.csv")
    scored = [metric for name, metric in tables.METRICS.items() if name in synthetic.METRICS]
    absent = {column for metric in tables.METRICS.values() if metric not in scored
              for column in (metric.column, f"{metric.column}_reason")}  # fmt: skip
    assert absent and not absent.intersection(written.columns)
    assert {metric.column for metric in scored} <= set(written.columns)
    assert summary[sorted(absent)].isna().all(axis=None)


def test_every_metric_of_the_schemas_has_a_column():
    schemas = (Path(__file__).parents[2] / "resources/schemas/metrics").glob("*.schema.json")
    assert {path.name.removesuffix(".schema.json") for path in schemas} == set(tables.METRICS)
    with pytest.raises(DataError, match="'sharpness' has no column; one of psnr"):
        tables.metric_of("sharpness")


def test_a_measured_row_is_complete(summary):
    found = row(summary, "rtn-w8a8")
    assert (found["status"], found["compute"], found["kernel"]) == ("ok", "real", "torch._int_mm")
    assert (found["size_mb"], found["model_mb"]) == (3.71, 5.71)
    assert found["energy_j_low"] < found["energy_j"] < found["energy_j_high"]
    assert found["energy_estimated"] is True
    assert found["features"] == "judge"
    assert found["n_blocks"] == synthetic.BLOCKS - 1  # an invalid block does not count


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
    assert found["status"] == "unsupported" and pd.isna(found["size_mb"]) and pd.isna(found["weight_bits"])


def test_change_of_fid_has_an_interval(summary):
    found = row(summary, "rtn-w2a16")
    assert found["fid_change"] == pytest.approx(11.0)
    assert found["fid_change_low"] == pytest.approx(10.9)  # drawn in pairs: narrower than the two intervals


def test_tokens_and_what_was_read_beside_the_gpu_have_columns(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    decode = {"latency_s": 0.5, "energy_j": 20.0, "mean_w": 40.0, "runs": 9, "tokens": 32.0}
    change_measurements(
        tmp_path, "rtn-w8a8", phases={"decode": decode}, secondary_energy_j={"cpu package": 3.5, "dram": None}
    )
    found = row(tables.summary_table(read_cells(tmp_path, cells, []), "bf16"), "rtn-w8a8")
    assert (found["tokens_per_s"], found["energy_per_token_j"]) == (64, 0.625)
    assert found["energy_cpu_package_j"] == 3.5 and pd.isna(found["energy_dram_j"])


def test_layers(tree):
    found = tables.read_table(tree[0] / "tables" / "layers.csv")
    assert list(found.columns) == layer_table.COLUMNS
    assert len(found) == 8 * len(synthetic.LAYERS)  # neither the baseline nor the unsupported method has any
    assert found["damping"].notna().sum() == 3 * len(synthetic.LAYERS)
    manifest = json.loads((tree[0] / "checkpoints/tiny-sd3/gptq-w4a8/manifest.json").read_text())
    for _, line in found[found["method"] == "gptq-w4a8"].iterrows():
        layer = manifest["layers"][line["layer"]]
        assert line["error_before"] == pytest.approx(layer["error_before"], rel=1e-7)
        assert line["relative_error"] == pytest.approx(layer["relative_error"], rel=1e-7)
        assert (line["seconds"], line["energy_j"]) == (0.03, 0.6)


def test_a_weights_bits_are_told_without_its_scales():
    widths = {"nf4": {"bits": 4}, "integer": {"bits": 2}, "quanto": {}}
    formats = {name: {"format": name} | width for name, width in widths.items()}
    checkpoint = {"layers": {name: {"weights": weights, "weight_bits": 4.5} for name, weights in formats.items()}}
    found = layer_table.layers_table([SimpleNamespace(model="m", method="n", checkpoint=checkpoint)]).set_index("layer")
    assert (found["weight_bits"] == 4.5).all()
    assert found.loc["nf4", "value_bits"] == 4 and found.loc["integer", "value_bits"] == 2
    assert pd.isna(found.loc["quanto", "value_bits"])


def test_a_table_is_written_as_it_is_read(tmp_path):
    table = pd.DataFrame(
        {"method": ["1.50", 'a, "b"', "c"], "baseline": [True, False, None], "n_images": [1, 2, 3],
         "fid": [1 / 3, None, math.inf], "steps": pd.array([1, None, 30], dtype="Int64"), "kid": [None] * 3}
    )  # fmt: skip
    tables.write_table(tmp_path / "table.csv", table)
    assert (tmp_path / "table.csv").read_bytes().decode() == (
        'method,baseline,n_images,fid,steps,kid\n1.50,true,1,0.33333333,1,\n"a, ""b""",false,2,,,\nc,,3,inf,30,\n'
    )
    again = tables.read_table(tmp_path / "table.csv")
    assert again["method"].tolist() == table["method"].tolist() and again["baseline"].dropna().tolist() == [True, False]
    assert again["kid"].isna().all() and again["n_images"].tolist() == [1, 2, 3]


def test_rows_of_other_columns_are_not_written(tmp_path):
    csv_files.write(tmp_path / "rows.csv", ("t_s", "watts"), [{"t_s": 0.1 + 0.2, "watts": None}])
    assert (tmp_path / "rows.csv").read_bytes() == b"t_s,watts\n0.30000000000000004,\n"
    with pytest.raises(ValueError, match="joules"):
        csv_files.write(tmp_path / "rows.csv", ("t_s", "watts"), [{"t_s": 1, "joules": 2}])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2  # as it was


# --- many methods, three seeds


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(cells, summary) of 25 methods under three seeds."""
    results = tmp_path_factory.mktemp("many")
    cells = read_cells(results, synthetic.write_many(results, with_images=False), synthetic.METRICS)
    path = results / "summary.csv"
    tables.write_table(path, tables.summary_table(cells, "bf16", synthetic.SEEDS))
    return cells, tables.read_table(path)


def test_only_samplings_that_differ_by_their_seed_are_replicates(tmp_path):
    samplings = synthetic.SEEDS | {"steps-50": synthetic.SAMPLING | {"steps": 50, "seed": 1}}
    written = [cell for name in samplings for cell in synthetic.write_tree(tmp_path, sampling=name, with_images=False)]
    found = tables.summary_table(read_cells(tmp_path, written, []), "bf16", samplings)
    first = found.drop_duplicates("sampling").set_index("sampling")["replicate_of"]
    assert first.dropna().to_dict() == {"seed-1000": "seed-0", "seed-2000": "seed-0"}
    assert set(tables.first_seeds(found)["sampling"]) == {"seed-0", "steps-50"}
    assert tables.by_seed(found) == []  # nothing was scored


def test_samplings_that_differ_by_their_steps_form_a_sweep(tmp_path):
    steps = synthetic.steps_settings()
    samplings = {f"{name}-{seed}": entry | {"seed": seed} for seed in (0, 9) for name, entry in steps.items()}
    samplings["larger"] = samplings["step-1-0"] | {"steps": 2, "height": 128}
    settings = {"methods": synthetic.SWEPT, "baseline": "float32", "with_images": False}
    written = []
    for name, entry in samplings.items():
        drawing = {key: entry[key] for key in ("seed", "steps")}
        written += synthetic.write_tree(tmp_path, sampling=name, **drawing, **settings)
    metrics = ["ssim", "psnr", "fid", "class-accuracy"]
    found = tables.summary_table(read_cells(tmp_path, written, metrics), "float32", samplings)
    first = found.drop_duplicates("sampling").set_index("sampling")
    assert first["steps"].to_dict() == {name: entry["steps"] for name, entry in samplings.items()}
    assert first["steps_of"].dropna().to_dict() == {
        f"{name}-{seed}": f"step-1-{seed}" for seed in (0, 9) for name in ("steps-2", "steps-4", "steps-8")
    }
    assert set(tables.first_samplings(found)["sampling"]) == {"step-1-0", "larger"}
    [(model, sampling, metrics, rows)] = tables.by_steps(found)  # of one seed, and of one size
    assert (model, sampling) == ("tiny-sd3", "step-1-0")
    assert [metric.title for metric in metrics] == ["FID", "Class accuracy", "PSNR", "SSIM"]
    assert list(dict.fromkeys(rows["steps"])) == [1, 2, 4, 8]
    assert list(dict.fromkeys(rows["method"])) == list(synthetic.SWEPT)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(cells, summary, sensitivity) of uniform and mixed methods, as the script writes them."""
    results = tmp_path_factory.mktemp("mixed")
    cells = synthetic.write_mixed(results, with_images=False)
    tried = [{"model": "few-step", "sensitivity": "tried"}]
    grid = synthetic.write_grid(results, cells, metrics=["fid", "psnr"], baseline="fp16", sensitivities=tried)
    tables_rule.main(["--results", str(results), "--grid", grid])
    found = (tables.read_table(results / "tables" / f"{name}.csv") for name in ("summary", "sensitivity"))
    return read_cells(results, cells, ["fid", "psnr"]), *found


def test_a_row_says_how_its_layers_got_their_formats(mixed):
    found = mixed[1].set_index("method")
    assert found["allocation"].isna()["fp16"] and found["sensitivity"].isna()["naive-w8a8"]
    assert found.loc["naive-w8a8", "allocation"] == "uniform"
    assert tuple(found.loc["mixdq-w4a8", ["allocation", "sensitivity"]]) == ("mixed", "tried")


@pytest.mark.parametrize(
    ("here", "there", "higher", "lower"),
    [
        ((5, 6), (3, 4), "better", "worse"),
        ((3, 4), (5, 6), "worse", "better"),
        ((3, 5), (4, 6), tables.UNDECIDED, tables.UNDECIDED),
        ((3, 4), (4, 5), tables.UNDECIDED, tables.UNDECIDED),  # they touch
        ((3, 4), (None, None), None, None),
    ],
)
def test_intervals_that_lie_apart(here, there, higher, lower):
    for metric, verdict in ((tables.METRICS["psnr"], higher), (tables.METRICS["fid"], lower)):
        rows = [
            dict(zip((f"{metric.column}_low", f"{metric.column}_high"), bounds, strict=True))
            for bounds in (here, there)
        ]
        assert tables.compare(*rows, metric) == verdict


def test_sensitivities_stand_with_the_metric_that_methods_choose_by(mixed, tmp_path):
    found = mixed[2]
    assert list(found.columns) == layer_table.SENSITIVITY_COLUMNS
    assert list(dict.fromkeys(found["layer"])) == synthetic.unet_layers(2)
    assert set(zip(found["group"], found["metric"], strict=True)) == {("content", "ssim"), ("quality", "sqnr")}
    for group, metric in (("content", "ssim"), ("quality", "sqnr")):
        own = found[found["group"] == group]
        assert (own["value"] == own[metric]).all()
    parts = [(group, metric, len(rows)) for _, _, group, metric, rows in layer_table.by_group(found)]
    assert parts == [("quality", "sqnr", 4 * 48), ("content", "ssim", 5 * 30)]


def test_parts_of_a_layer_are_of_its_group(tmp_path):
    cells = synthetic.write_mixed(tmp_path, with_images=False)
    described, table = tmp_path / "models/few-step/manifest.json", tmp_path / "sensitivity/few-step/tried.csv"
    model = json.loads(described.read_text())
    model["layers"]["conv_out"]["skips"] = [40, 24]
    described.write_text(json.dumps(model))
    own = [line for line in table.read_text().splitlines() if line.startswith("conv_out,")]
    parts = [line.replace("conv_out,", f"conv_out.{part},") for part in (0, 1) for line in own]
    kept = [line for line in table.read_text().splitlines() if line not in own]
    table.write_text("\n".join([*kept, *parts]) + "\n")
    tried = tables_rule.tried_in(tmp_path, [{"model": "few-step", "sensitivity": "tried"}])
    found = (
        layer_table.sensitivity_table(read_cells(tmp_path, cells, []), tried)
        .groupby("layer")[["group", "metric"]]
        .first()
    )
    assert found.loc[["conv_out.0", "conv_out.1"]].to_numpy().tolist() == [["quality", "sqnr"]] * 2


def test_without_groups_one_metric_compares_all_layers(tmp_path):
    cells = synthetic.write_mixed(tmp_path, decoupled=False, with_images=False)
    tried = tables_rule.tried_in(tmp_path, [{"model": "few-step", "sensitivity": "tried"}])
    found = layer_table.sensitivity_table(read_cells(tmp_path, cells, []), tried)
    [(_, name, group, metric, rows)] = layer_table.by_group(found)
    assert (name, group, metric) == ("tried", None, "sqnr") and rows["layer"].nunique() == 78
    with pytest.raises(DataError, match="no mixed method among the cells chooses by the sensitivity 'tried'"):
        layer_table.sensitivity_table(read_cells(tmp_path, cells[:3], []), tried)


def test_every_objective_that_methods_choose_by_has_rows(tmp_path):
    cells = synthetic.write_mixed(tmp_path, with_images=False)
    path = tmp_path / "checkpoints/few-step/mixdq-w4/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["allocation"]["programs"][0]["objective"] = "noise"
    path.write_text(json.dumps(manifest))
    tried = tables_rule.tried_in(tmp_path, [{"model": "few-step", "sensitivity": "tried"}])
    found = layer_table.sensitivity_table(read_cells(tmp_path, cells, []), tried)
    parts = {(group, metric): rows for _, _, group, metric, rows in layer_table.by_group(found)}
    assert set(parts) == {("quality", "sqnr"), ("content", "ssim"), (None, "noise")}
    noise = parts[None, "noise"]
    assert noise["layer"].nunique() == 78 and (noise["value"] == noise["noise"]).all()
    assert len(parts["content", "ssim"]) == 5 * 30


def test_the_most_sensitive_layers_by_their_worst_candidate(mixed):
    content = next(part for part in layer_table.most_sensitive(mixed[2]) if part["group"] == "content")
    assert content["candidates"] == ["w8", "w4", "w2", "a8", "a4"] and content["layers"] == 30
    rows = mixed[2][mixed[2]["group"] == "content"]
    worst = rows.groupby("layer")["ssim"].min().sort_values()
    assert [layer for layer, _ in content["rows"]] == list(worst.index[:5])
    layer, values = content["rows"][0]
    own = rows[rows["layer"] == layer].set_index("candidate")["ssim"]
    assert values == pytest.approx([own[candidate] for candidate in content["candidates"]])
    quality = next(part for part in layer_table.most_sensitive(mixed[2]) if part["group"] == "quality")
    assert "w2" not in quality["candidates"]


def test_a_layer_that_breaks_the_model_is_the_most_sensitive(mixed):
    broken = (mixed[2]["layer"] == "conv_out") & (mixed[2]["candidate"] == "w4")
    table = mixed[2].assign(value=mixed[2]["value"].mask(broken))
    quality = next(part for part in layer_table.most_sensitive(table) if part["group"] == "quality")
    layer, values = quality["rows"][0]
    assert layer == "conv_out" and [math.isnan(value) for value in values] == [False, True, False, False]


def test_a_candidate_that_rounds_nothing_is_no_news(mixed):
    floats = mixed[2][mixed[2]["candidate"] == "w8"].assign(candidate="float", value=144.5, sqnr=144.5, noise=0.0)
    for part in layer_table.most_sensitive(pd.concat([mixed[2], floats])):
        assert "float" not in part["candidates"] and "w8" in part["candidates"]
    alone = mixed[2][mixed[2]["layer"] == "conv_in"]
    assert layer_table.most_sensitive(alone)[0]["candidates"] == ["w8", "w4", "a8", "a4"]


def test_of_noise_the_most_is_the_worst(mixed):
    by_noise = mixed[2].assign(group=None, metric="noise", value=mixed[2]["noise"])
    [found] = layer_table.most_sensitive(by_noise, count=2)
    worst = mixed[2].groupby("layer")["noise"].max().sort_values(ascending=False)
    assert [layer for layer, _ in found["rows"]] == list(worst.index[:2])
    assert {len(values) for _, values in found["rows"]} == {5}
    lacking = [layer for layer, values in layer_table.most_sensitive(by_noise, 99)[0]["rows"] if np.isnan(values[4])]
    assert len(lacking) == 48  # quality layers, which w2 was not tried on


def test_scores_by_seed_best_mean_first(many):
    [(model, sampling, metric, rows)] = tables.by_seed(many[1])
    assert (model, sampling, metric.title) == ("tiny-sd3", "seed-0", "PSNR")
    methods = list(dict.fromkeys(rows["method"]))
    means = [np.mean([cell.scores["psnr"]["value"] for cell in many[0] if cell.method == method]) for method in methods]
    assert means == sorted(means, reverse=True)
    assert len(methods) == 25 - 1 - 3 and (rows.groupby("method")["seed"].nunique() == 3).all()


def test_a_library_stands_for_the_solver(many):
    solvers = many[1].drop_duplicates("method").set_index("method")["solver"]
    assert solvers["torchao-int8"] == "torchao" and solvers["qronos-w4a8"] == "qronos" and solvers["nf4"] == "rtn"


def test_errors_of_a_method_before_and_after(many):
    table = layer_table.layers_table(many[0])
    found = {line["method"]: line for line in layer_table.error_summary(table)}
    checkpoint = next(cell.checkpoint for cell in many[0] if cell.method == "qronos-w4a8-segments")
    errors = {name: layer["relative_error"] for name, layer in checkpoint["layers"].items()}
    line = found["qronos-w4a8-segments"]
    assert line["error_of"] == "outputs against the float model's" and line["layers"] == len(errors) == 81 + 12 * 5
    assert line["after"] == pytest.approx(np.median(list(errors.values())))
    before = np.median([layer["error_before"] for layer in checkpoint["layers"].values()])
    assert line["before"] == pytest.approx(before) and line["before"] > line["after"]
    name, error = line["worst"][0]
    assert error == max(errors.values()) == errors[f"transformer_blocks.{name}"]
    assert math.isnan(found["torchao-int8"]["before"])
    kinds = [line["error_of"] for line in layer_table.error_summary(table)]
    found = list(dict.fromkeys(kinds))
    assert len(found) == 3 and found == [kind for kind in layer_table.ERRORS.values() if kind in found]


def test_what_solving_took_and_who_fell_back(many):
    found = layer_table.solving_summary(layer_table.layers_table(many[0]))
    brecq = found["tiny-sd3", "brecq-w4a8"]
    assert brecq["fallbacks"] == {"rtn": 1} and brecq["layers"] == 81
    assert brecq["seconds"] == pytest.approx(0.03 * 81) and brecq["energy_j"] == pytest.approx(0.6 * 81)
    assert math.isnan(found["tiny-sd3", "torchao-int8"]["energy_j"])  # not metered: no sum, and never zero
    assert found["tiny-sd3", "gptq-w4a8"]["fallbacks"] == {} and found["tiny-sd3", "gptq-w4a8"]["few_tokens"] == 0
    table = layer_table.layers_table(many[0]).assign(tokens=lambda rows: 100.0 + 28 * (rows["layer"].str.len() % 2))
    counted = layer_table.solving_summary(table)["tiny-sd3", "gptq-w4a8"]  # of layers with 128 inputs
    assert counted["few_tokens"] == (table[table["method"] == "gptq-w4a8"]["tokens"] == 100).sum() > 0


# --- what may not enter


def test_a_missing_file_is_named(tree):
    results, cells = tree
    with pytest.raises(DataError, match="missing-method/manifest.json: the file does not exist"):
        read_cells(results, [*cells, cells[0] | {"method": "missing-method"}], synthetic.METRICS)
    with pytest.raises(DataError, match="sharpness.json"):
        read_cells(results, cells, ["sharpness"])


def test_only_listed_cells_enter(tree):
    results, cells = tree
    found = tables.summary_table(read_cells(results, cells[:2], ["fid"]), "bf16")
    assert list(found["method"]) == ["bf16", "rtn-w8a8"]
    assert found["psnr_db"].isna().all()


def test_other_prompts_are_refused(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    path = tmp_path / "images/tiny-sd3/nf4/steps-20/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts_sha256": "other"}))
    with pytest.raises(DataError, match="nf4 was given other prompts"):
        read_cells(tmp_path, cells, [])


def test_a_file_of_another_cell_is_refused(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    folder = tmp_path / "checkpoints/tiny-sd3"
    (folder / "nf4/manifest.json").write_text((folder / "bf16/manifest.json").read_text())
    with pytest.raises(DataError, match="belongs to method 'bf16', not 'nf4'"):
        read_cells(tmp_path, cells, [])


def test_another_device_is_another_group(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    groups = dict(tables.groups(small_tree(tmp_path, device=devices)))
    assert [len(rows) for rows in groups.values()] == [9, 1]
    assert "Example GPU 3f9a1c" in list(groups)[1]


def change_measurements(results, method, **changes):
    for path in results.glob(f"measurements/*/{method}/*/measurement.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_a_baseline_beside_it_there_is_no_ratio_and_a_reason(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    change_measurements(tmp_path, "rtn-w8a8", baseline=None, ratio_reason="the baseline: out of memory",
                        ratio={"energy_j": None, "latency_s": None})  # fmt: skip
    found = row(tables.summary_table(read_cells(tmp_path, cells, []), "bf16"), "rtn-w8a8")
    assert pd.isna(found["energy_ratio"]) and pd.isna(found["verdict"]) and pd.isna(found["break_even_images"])
    assert found["ratio_reason"] == "the baseline: out of memory" and found["energy_j"] > 0


def test_carbon_is_energy_times_the_grids_factor(tmp_path):
    cells = read_cells(tmp_path, synthetic.write_tree(tmp_path, with_images=False), [])
    found = tables.summary_table(cells, "bf16", carbon_g_per_kwh=360.0)
    assert row(found, "rtn-w8a8")["carbon_g"] == pytest.approx(0.88 * 360 / 3.6e6)
    assert pd.isna(row(found, "rtn-w4a16")["carbon_g"])  # simulated: no energy, no carbon
    assert tables.summary_table(cells, "bf16")["carbon_g"].isna().all()


def summary_with(results, cells, method, **changes):
    """The summary's row of rtn-w8a8 after other measurements of a method."""
    change_measurements(results, method, **changes)
    return row(tables.summary_table(read_cells(results, cells, []), "bf16"), "rtn-w8a8")


def test_the_control_has_an_interval_and_qualifies_what_it_reaches(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    before = row(tables.summary_table(read_cells(tmp_path, cells, []), "bf16"), "rtn-w8a8")
    control = before[["energy_control", "energy_control_low", "energy_control_high"]]
    assert list(control) == pytest.approx([1, 0.99, 1.008]) and before["verdict"] == "better"
    noisy = {"value": 1.0, "low": 0.75, "high": 1.3}
    after = summary_with(tmp_path, cells, "bf16", ratio={"energy_j": noisy, "latency_s": None})
    assert after["energy_control_low"] == 0.75 and after["verdict"] == "better, within the control"
    assert pd.isna(after["latency_control"]) and after["latency_verdict"] == "better, without a control"
    assert after["energy_ratio"] == before["energy_ratio"]


@pytest.mark.parametrize("wide", [{"low": 0.0, "high": 1.3e8}, {"low": 0.4, "high": 1.7}, {"low": 0.1, "high": None}])
def test_what_is_too_noisy_has_neither_value_nor_interval(tmp_path, wide):
    cells, wide = synthetic.write_tree(tmp_path, with_images=False), {"value": 6.0, "median": 6.0, **wide}
    found = summary_with(tmp_path, cells, "rtn-w8a8", latency_s=wide, energy_j=wide,
                         ratio={"energy_j": wide, "latency_s": wide})  # fmt: skip
    for column in ("energy_j", "latency_s", "energy_ratio", "latency_ratio"):
        assert found[[column, f"{column}_low", f"{column}_high"]].isna().all(), column
    told = ("verdict", "latency_verdict", "ratio_reason", "energy_reason", "latency_reason")
    assert {found[column] for column in told} == {"not measured: the machine was too noisy"}
    assert found["memory_mb"] > 0 and found["status"] == "ok" and pd.isna(found["memory_reason"])
    assert found["energy_estimated"] is True


def test_a_control_that_is_too_noisy_is_not_shown_and_reaches_everything(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    wide = {"value": 1.0, "low": 0.1, "high": 9.0}
    found = summary_with(tmp_path, cells, "bf16", ratio={"energy_j": wide, "latency_s": wide})
    assert pd.isna(found["energy_control_low"]) and found["verdict"] == "better, within the control"


def test_pairs_are_counted_with_those_that_were_disturbed(summary):
    counted = ["n_pairs", "n_disturbed", "n_processes", "in_pairs", "known"]
    assert list(row(summary, "rtn-w8a8")[counted]) == [synthetic.PAIRS, synthetic.DISTURBED, 4, True, True]
    assert row(summary, "rtn-w4a8")[counted].isna().all() and (summary["margin"] == 0.05).all()


def test_rows_without_a_device_join_the_only_group(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w4a8": {"name": None, "kind": "cpu"}}
    assert len(tables.groups(small_tree(tmp_path, device=devices))) == 1


def test_unreadable_energy_keeps_time(tmp_path):
    found = row(small_tree(tmp_path, meter="rapl", energy_reason="/sys/class/powercap is unreadable"), "rtn-w8a8")
    assert pd.isna(found["energy_j"]) and found["energy_reason"] == "/sys/class/powercap is unreadable"
    assert found["latency_ratio"] < 1 and found["latency_verdict"] == "better"
    assert pd.isna(found["energy_ratio"])


QUIET, LOUD, APART = (1.0, 0.99, 1.01), (1.0, 0.9, 1.05), (1.04, 1.02, 1.06)  # controls; the last excludes 1


@pytest.mark.parametrize(
    ("ratio", "low", "high", "control", "verdict"),
    [
        (0.85, 0.8, 0.9, QUIET, "better"),
        (1.15, 1.1, 1.2, QUIET, "worse"),
        (1.15, 1.1, 1.2, LOUD, "worse"),
        (0.91, 0.89, 0.93, LOUD, "better, within the control"),
        (1.1, 1.06, 1.14, LOUD, "worse, within the control"),  # as far as LOUD reaches, if to the other side
        (0.85, 0.8, 0.9, APART, "better, within the control"),
        (0.85, 0.8, 0.9, None, "better, without a control"),
        (1.15, 1.1, 1.2, None, "worse, without a control"),
        (1.0, 0.9, 1.1, QUIET, "not told apart"),
        (1.2, 0.99, 1.5, QUIET, "not told apart"),
        (1.0, 0.96, 1.04, QUIET, "equal"),
        (0.97, 0.96, 0.98, QUIET, "equal"),  # told apart, by less than matters
        (0.97, 0.94, 0.99, QUIET, "better"),
        (0.97, 0.94, 0.99, LOUD, "better, within the control"),
        (54.0, 20.0, 79.0, QUIET, "worse"),
        (1.0, 0.4, 1.7, QUIET, "not measured: the machine was too noisy"),
        (6.0, 0.0, 1.3e8, QUIET, "not measured: the machine was too noisy"),
        (6.0, 5.0, math.nan, QUIET, "not measured: the machine was too noisy"),
        (0.9, math.nan, math.nan, QUIET, None),
    ],
)
def test_verdict(ratio, low, high, control, verdict):
    assert tables.judge(ratio, low, high, control) == verdict


def test_the_margin_of_equal_costs_is_the_users(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    grid = synthetic.write_grid(tmp_path, cells, margin=0.25)
    tables_rule.main(["--results", str(tmp_path), "--grid", grid])
    found = row(tables.read_table(tmp_path / "tables/summary.csv"), "rtn-w8a8")
    assert (found["verdict"], found["latency_verdict"], found["margin"]) == ("equal", "equal", 0.25)
    assert tables.judge(0.97, 0.96, 0.98, QUIET, margin=0.03) == "better"


@pytest.mark.parametrize("control", [QUIET, LOUD, (1.0, 0.5, 1.9)])
def test_a_ratio_apart_from_1_is_never_called_less_than_that(control):
    for ratio in np.exp(np.linspace(-1, 1, 81)):
        for half in (0.01, 0.05, 0.3):
            low, high = ratio * math.exp(-half), ratio * math.exp(half)
            verdict = tables.judge(ratio, low, high, control)
            if not low <= 1 <= high:
                assert verdict.startswith("better" if ratio < 1 else "worse") or (verdict == "equal" and half < 0.05)
