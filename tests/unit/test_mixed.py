"""Mixed allocations: constraints of programs, settings of the sweep, layers kept in 16 bit, and costs of budgets."""

import copy
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

import allocate
import candidates
import quantize
from quantwatt.allocate import allocation, integer_program, programs
from quantwatt.allocate.allocations import mixed
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import ConfigurationError, check_experiment, complete_method
from quantwatt.config.programs import names_of

ROOT = Path(__file__).parents[2]
W = {f"w{bits}": {"weights": {"format": "integer", "bits": bits}} for bits in (8, 4, 2)}
A = {f"a{bits}": {"activations": {"bits": bits}} for bits in (8, 4)}
BOTH = {
    "int8": {"weights": {"format": "integer", "bits": 8}, "activations": {"bits": 8}},
    "nf4": {"weights": {"format": "nf4"}, "activations": None},
    "float": {"weights": None, "activations": None},
}
DECOUPLED = {"content": "ssim", "quality": "sqnr"}
SIZES = {"ff.0": (64, 16), "attn2.to_k": (32, 16), "conv_in": (9, 16), "attn1.to_q": (16, 16), "conv_out": (36, 8)}
LAYERS = {
    name: {"in_features": columns, "out_features": rows, "group": "content" if name[0] in "fa" else "quality"}
    for name, (columns, rows) in SIZES.items()
}
LAYERS["attn1.to_q"]["group"] = "quality"


def table():
    """Scores that fall with bits, faster in layers further down; nothing else differs between them."""
    found = {}
    for index, name in enumerate(LAYERS, start=1):
        found[name] = {}
        for candidate, damage in {"w8": 0.01, "w4": 0.1, "w2": 0.5, "a8": 0.02, "a4": 0.2, "int8": 0.03, "nf4": 0.11,
                                  "float": 0.0}.items():  # fmt: skip
            noise = damage * index
            found[name][candidate] = {
                "ssim": 1 - noise / 5, "psnr": 60 - 40 * noise, "sqnr": 40 - 30 * noise, "noise": noise,
                "inputs": float(100 * index), "megabytes": {"int8": 1.0, "nf4": 0.5, "float": 4.0}.get(candidate, 2.0),
            }  # fmt: skip
    return found


def method_of(*own, **entry):
    """A completed mixed method with its candidates, as an experiment completes it."""
    programs = [{"candidates": [*W], "objective": "noise", "budget": {"bits": 4}} | program for program in own]
    allocation = {"name": "mixed", "sensitivity": "s", "programs": programs}
    method = complete_method({"allocation": allocation, **entry}, "mine.yaml", "methods.m")
    method["allocation"]["candidates"] = {
        name: formats for name, formats in (W | A | BOTH).items() if any(name in names_of(p) for p in programs)
    }
    return method


def solve(*own, measured=None, layers=LAYERS, scores=None, **entry):
    return programs.solve(layers, [scores or table()], measured, method_of(*own, **entry), "m", "float32")


def weights_of(names):
    return sum(LAYERS[name]["in_features"] * LAYERS[name]["out_features"] for name in names)


def average(layers):
    """Average bits over weights, counted here."""
    return sum(weights_of([name]) * int(candidate[1:]) for name, candidate in layers.items()) / weights_of(layers)


def test_average_bits_are_met_and_noise_is_least():
    choices = solve({"targets": 1, "tolerance": 0.3})
    (choice,) = choices
    bits = average(choice["ranges"][0])
    assert choice["target"] == 4  # one target is the budget
    assert choice["cost"] == pytest.approx(bits) and abs(bits - 4) <= 0.3 and choice["unit"] == "bits"
    least = min(
        sum(table()[name][candidate]["noise"] for name, candidate in zip(LAYERS, names, strict=True))
        for names in itertools.product(W, repeat=len(LAYERS))
        if abs(average(dict(zip(LAYERS, names, strict=True))) - 4) <= 0.3
    )
    assert choice["scores"] == {"all": pytest.approx(-least)}


def test_targets_lie_below_the_budget_and_equal_choices_stand_once():
    choices = solve({"targets": 10, "tolerance": 0.3, "below": 0.3})
    targets = [choice["target"] for choice in choices]
    assert all(3.7 - 1e-9 <= target <= 4 + 1e-9 for target in targets) and targets == sorted(targets)
    assert [choice["number"] for choice in choices] == list(range(len(choices)))
    different = {tuple(choice["ranges"][0].items()) for choice in choices}
    assert 1 <= len(different) == len(choices) < 10


def test_the_groups_share_the_average_as_the_paper_has_it():
    split = {"low": 0.8, "high": 1.2, "count": 3}
    candidates = {"content": ["w8", "w4", "w2"], "quality": ["w8", "w4"]}
    choices = solve({"objective": DECOUPLED, "candidates": candidates, "budget": {"bits": 5}, "split": split,
                     "targets": 1, "below": 0, "tolerance": 0.8})  # fmt: skip
    content = [name for name in LAYERS if LAYERS[name]["group"] == "content"]
    quality = [name for name in LAYERS if LAYERS[name]["group"] == "quality"]
    ratio = weights_of(content) / weights_of(quality)
    assert len(choices) > 1
    for choice in choices:
        k = choice["split"]
        of_quality = 5 * (1 + ratio) / (k * ratio + 1)
        for names, aim in ((quality, of_quality), (content, k * of_quality)):
            assert abs(average({name: choice["ranges"][0][name] for name in names}) - aim) <= 0.8 + 1e-4
        assert all(choice["ranges"][0][name] != "w2" for name in quality)
        ssim = sum(table()[name][choice["ranges"][0][name]]["ssim"] for name in content)
        sqnr = sum(table()[name][choice["ranges"][0][name]]["sqnr"] for name in quality)
        assert choice["scores"] == {"content": pytest.approx(ssim), "quality": pytest.approx(sqnr)}


def test_default_splits_are_mixdqs():
    method = method_of({"objective": DECOUPLED, "candidates": [*W]})
    assert method["allocation"]["programs"][0]["split"] is None
    assert programs.SPLITS == {"weights": (0.46, 1.36, 10), "activations": (0.94, 1.09, 20)}
    program = method["allocation"]["programs"][0]
    assert (program["targets"], program["below"], program["tolerance"]) == (10, 0.3, 0.02)


def test_activations_count_by_the_elements_of_their_inputs_and_the_most_sensitive_stay_in_16_bit():
    program = {"candidates": [*A], "budget": {"bits": 6}, "protect": 0.01, "targets": 1, "below": 0, "tolerance": 0.5}
    (choice,) = solve(program)
    assert choice["ranges"][0]["conv_out"] is None  # the noisiest with 8 bits, and one layer at least
    inputs = {name: 100 * index for index, name in enumerate(LAYERS, start=1)}
    bits = {name: 16 if candidate is None else int(candidate[1:]) for name, candidate in choice["ranges"][0].items()}
    mean = sum(bits[name] * inputs[name] for name in LAYERS) / sum(inputs.values())
    assert choice["cost"] == pytest.approx(mean)
    free = [name for name in LAYERS if name != "conv_out"]  # MixDQ's budget: the protected layer comes on top
    assert abs(sum(bits[name] * inputs[name] for name in free) / sum(inputs[name] for name in free) - 6) <= 0.5


def test_a_protected_layer_leaves_the_others_their_whole_budget():
    program = {"candidates": [*A], "objective": DECOUPLED, "budget": {"bits": 8}, "protect": 0.01, "targets": 1,
               "below": 0, "split": {"low": 1, "high": 1, "count": 1}}  # fmt: skip
    (choice,) = solve(program)
    assert sorted(str(candidate) for candidate in choice["ranges"][0].values()) == ["None", "None", "a8", "a8", "a8"]
    assert choice["cost"] == pytest.approx((16 * (200 + 500) + 8 * (100 + 300 + 400)) / 1500)


def test_each_group_protects_its_own():
    program = {"candidates": [*A], "objective": DECOUPLED, "budget": {"bits": 10}, "protect": 0.01, "targets": 1,
               "below": 0, "split": {"low": 1, "high": 1, "count": 1}, "tolerance": 4}  # fmt: skip
    (choice,) = solve(program)
    assert [name for name, candidate in choice["ranges"][0].items() if candidate is None] == ["attn2.to_k", "conv_out"]


def test_an_infeasible_average_names_the_nearest():
    with pytest.raises(DataError) as caught:
        solve({"candidates": ["w8", "w4"], "budget": {"bits": 3}})
    assert str(caught.value) == (
        "methods.m.allocation.programs.0.budget.bits: no choice of w8, w4 for 5 layers averages 3 bits or up to 0.3 "
        "below; the nearest average is 4."
    )


def test_where_only_the_splits_do_not_fit_the_sentence_says_so():
    split = {"low": 3, "high": 4, "count": 2}
    with pytest.raises(
        DataError, match="no split of 4 bits between .* is feasible; .* Without a split, 4 bits are feasible"
    ):
        solve({"candidates": ["w8", "w4"], "objective": DECOUPLED, "split": split, "targets": 1, "below": 0})


def test_a_program_that_the_solver_gives_up_is_no_budget_that_cannot_be_met(monkeypatch):
    def give_up(*asked):
        raise integer_program.Unsolved("no choice was found within 120 s")

    monkeypatch.setattr(integer_program, "solve", give_up)
    with pytest.raises(DataError) as caught:
        solve({})
    assert not isinstance(caught.value, programs.BudgetInfeasible) and str(caught.value) == (
        "methods.m.allocation.programs.0: the program of 5 layers is unsolved: no choice was found within 120 s."
    )


def costs(**own):
    """Milliseconds of every layer: int8 halves them, nf4 has no kernel."""
    found = {}
    for index, name in enumerate(LAYERS, start=1):
        found[name] = {"baseline": {"milliseconds": float(index), "joules": None},
                       "float": {"milliseconds": float(index), "joules": None},
                       "int8": {"milliseconds": index / 2, "joules": None},
                       "nf4": {"milliseconds": None, "joules": None}} | own  # fmt: skip
    return found


def test_a_budget_of_measured_time_is_a_part_of_the_baselines():
    budget = {"milliseconds": 0.6, "of": "baseline"}
    (choice,) = solve({"candidates": [*BOTH], "budget": budget}, measured=costs())
    assert "nf4" not in choice["ranges"][0].values()  # nothing is known of its time
    assert choice["cost"] <= 0.6 * 15 + 1e-4 and choice["unit"] == "milliseconds" and choice["target"] == 9
    slow = [name for name, candidate in choice["ranges"][0].items() if candidate == "float"]
    possible = [
        sum(table()[name]["int8"]["noise"] for name in LAYERS if name not in kept)
        for size in range(6)
        for kept in itertools.combinations(LAYERS, size)
        if sum((list(LAYERS).index(name) + 1) / 2 for name in kept) <= 1.5
    ]
    assert sum(table()[name]["int8"]["noise"] for name in LAYERS if name not in slow) == pytest.approx(min(possible))


def test_measured_budgets_that_cannot_be_met_name_the_nearest():
    with pytest.raises(programs.BudgetInfeasible) as caught:
        solve({"candidates": [*BOTH], "budget": {"milliseconds": 0.4, "of": "baseline"}}, measured=costs())
    assert str(caught.value) == (
        "methods.m.allocation.programs.0.budget: no choice of int8, nf4, float for 5 layers stays within 6 ms; the "
        "nearest feasible budget is 7.5 ms (0.5 of the baseline's)."
    )
    with pytest.raises(DataError, match="layer ff.0 has no candidate with both a score and milliseconds"):
        solve({"candidates": ["nf4"], "budget": {"milliseconds": 5}}, measured=costs())
    with pytest.raises(DataError, match="layer ff.0 has no candidate with both a score and joules"):
        solve({"candidates": [*BOTH], "budget": {"joules": 0.5, "of": "baseline"}}, measured=costs())


def test_megabytes_need_no_measurement():
    (choice,) = solve({"candidates": [*BOTH], "budget": {"megabytes": 4.5}})
    named = [*choice["ranges"][0].values()]  # int8 takes 1 MB and nf4 0.5: one layer must be nf4, the least noisy one
    assert named == ["nf4", "int8", "int8", "int8", "int8"] and choice["cost"] == 4.5
    (part,) = solve({"candidates": [*BOTH], "budget": {"megabytes": 1000, "of": "baseline"}})
    assert part["target"] == pytest.approx(1000 * 4 * weights_of(LAYERS) / 1e6)


def test_a_score_that_is_not_finite_is_never_chosen():
    scores = table()
    for own in scores.values():
        own["w2"]["noise"] = None
    choices = solve({"tolerance": 0.5}, scores=scores)
    assert choices and all("w2" not in choice["ranges"][0].values() for choice in choices)


def test_a_layer_that_breaks_in_every_candidate_is_the_most_sensitive():
    scores = table()
    for candidate in A:
        scores["conv_in"][candidate]["noise"] = None
    program = {"candidates": [*A], "budget": {"bits": 8}, "protect": 0.01}
    choices = solve(program, scores=scores)
    assert all(
        [n for n, candidate in choice["ranges"][0].items() if candidate is None] == ["conv_in"] for choice in choices
    )
    with pytest.raises(DataError) as caught:
        solve(program | {"protect": 0}, scores=scores)
    assert str(caught.value) == (
        "methods.m.allocation.programs.0: layer conv_in has no candidate with a finite score; "
        "add one that leaves it in 16 bit ({activations: null})."
    )


def test_a_model_without_groups_wants_one_objective():
    layers = {name: {key: layer[key] for key in ("in_features", "out_features")} for name, layer in LAYERS.items()}
    with pytest.raises(DataError, match="layer ff.0 is of no group"):
        solve({"objective": DECOUPLED}, layers=layers)
    assert solve({"tolerance": 0.3}, layers=layers)


def test_two_programs_make_one_allocation(tmp_path):
    act = {"candidates": [*A], "budget": {"bits": 8}, "protect": 0.01, "tolerance": 0.5}
    method = method_of({"tolerance": 0.3}, act)
    solved = programs.solve(LAYERS, [table()], None, method, "m", "float32")
    errors = {(choice["program"], choice["number"]): 1 / (1 + choice["number"]) for choice in solved}
    last = [[choice for choice in solved if choice["program"] == p][-1]["ranges"][0] for p in (0, 1)]
    found = allocation.allocate(LAYERS, method, "m", solved=solved, tried=errors)
    assert found == {
        name: {
            "weights": W[last[0][name]]["weights"],
            "activations": A[last[1][name]]["activations"] if last[1][name] else None,
        }
        for name in LAYERS
    }
    rows = [{"program": p, "number": n, "image_error": e, "psnr": 1.0} for (p, n), e in errors.items()]
    csv_files.write(tmp_path / "trials.csv", sensitivity_table.TRIALS, rows)
    (tmp_path / "c.json").write_text("[]")
    assert mixed.read(tmp_path / "c.json", tmp_path / "trials.csv") == {"solved": [], "tried": errors}


def test_what_no_program_decides_is_as_the_method_has_it():
    method = method_of({"candidates": [*A], "budget": {"bits": 8}}, weights={"format": "nf4"})
    layers = dict.fromkeys(LAYERS, "a8")
    found = allocation.allocate(LAYERS, method, "m", solved=[{"program": 0, "number": 0, "ranges": [layers]}])
    assert {formats["weights"]["format"] for formats in found.values()} == {"nf4"}
    assert {formats["activations"]["bits"] for formats in found.values()} == {8}


def test_layers_of_16_bit_weights_are_left_out_and_activations_may_stay_alone():
    method = method_of({"candidates": [*BOTH], "budget": {"megabytes": 6.0}})
    layers = dict(zip(LAYERS, ["float", "nf4", "int8", "float", "nf4"], strict=True))
    found = allocation.allocate(LAYERS, method, "m", solved=[{"program": 0, "number": 0, "ranges": [layers]}])
    assert list(found) == ["attn2.to_k", "conv_in", "conv_out"]
    assert found["attn2.to_k"] == {"weights": {"format": "nf4"}, "activations": None}
    method = method_of({"candidates": [*A], "budget": {"bits": 8}}, weights={"format": "nf4"})
    own = dict.fromkeys(LAYERS, "a4") | {"ff.0": None}
    found = allocation.allocate(LAYERS, method, "m", solved=[{"program": 0, "number": 0, "ranges": [own]}])
    assert found["ff.0"]["activations"] is None and found["ff.0"]["weights"]["format"] == "nf4"
    assert found["conv_in"]["activations"]["bits"] == 4


MODEL = {"family": "sd3", "path": "resources/models/tiny-sd3", "dtype": "float32", "text_encoder_3": False}
SENSITIVITY = {
    "candidates": {**W, **A, **BOTH},
    "prompts": "resources/prompts/shapes-calibration.txt",
    "images": 4,
    "steps": 2,
}


def experiment_of(*programs, sensitivity=None, **method):
    allocation = {"name": "mixed", "sensitivity": "alone", "programs": list(programs)}
    return {
        "models": {"m": MODEL},
        "baseline": "float",
        "methods": {"float": None, "mix": {"allocation": allocation, **method}},
        "samplings": {"s": {"prompts": "resources/prompts/shapes-test.txt", "images": 4, "steps": 2}},
        "sensitivities": {"alone": SENSITIVITY | (sensitivity or {})},
    }


PROGRAM = {"candidates": ["w8", "w4"], "objective": "noise", "budget": {"bits": 4}}


def test_an_experiment_hands_its_candidates_to_the_method():
    static = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    raw = experiment_of(PROGRAM, {"candidates": ["s8"], "objective": "sqnr", "budget": {"bits": 8}},
                        sensitivity={"candidates": {**W, "s8": {"activations": static}}})  # fmt: skip
    with pytest.raises(ConfigurationError, match="calibration: missing, and method 'mix' needs calibration data"):
        check_experiment(raw, "mine.yaml")
    raw["calibration"] = {"prompts": "resources/prompts/shapes-calibration.txt", "steps": 2}
    loaded = check_experiment(raw, "mine.yaml")
    method, alone = loaded["methods"]["mix"], loaded["sensitivities"]["alone"]
    assert set(method["allocation"]["candidates"]) == {"w8", "w4", "s8"}
    assert method["allocation"]["candidates"]["w4"]["weights"]["granularity"] == "channel"
    assert "activations" not in method["allocation"]["candidates"]["w4"]
    assert method["solver"] == {"name": "rtn"} and method["weights"] is None
    assert alone["seed"] == 1000000 and alone["costs"]["rounds"] == 5
    assert "candidates" not in loaded["methods"]["float"]["allocation"]


def test_a_sensitivity_has_the_objectives_of_the_methods_that_choose_by_it():
    decoupled = {"content": "ssim", "quality": "sqnr"}
    raw = experiment_of(PROGRAM, {"candidates": ["a8"], "objective": decoupled, "budget": {"bits": 8}})
    raw["sensitivities"] |= {"other": SENSITIVITY, "unused": SENSITIVITY}
    other = {"name": "mixed", "sensitivity": "other", "programs": [PROGRAM | {"objective": "sqnr"}]}
    raw["methods"] |= {"same": raw["methods"]["mix"], "other": {"allocation": other}}
    methods = raw["methods"]

    def objectives():
        entries = check_experiment(copy.deepcopy(raw), "mine.yaml")["sensitivities"]
        return [entries[name]["objectives"] for name in ("alone", "other", "unused")]

    found = objectives()
    assert found == [["noise", decoupled], ["sqnr"], list(sensitivity_table.METRICS)]
    raw["methods"] = dict(reversed(methods.items()))
    assert objectives() == found
    raw["methods"]["third"] = {"allocation": other | {"programs": [PROGRAM | {"objective": "psnr"}]}}
    assert objectives() == [found[0], ["psnr", "sqnr"], found[2]]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (experiment_of(PROGRAM | {"candidates": ["w8", "w5"]}), ["programs.0.candidates", "tries no 'w5'", "w8"]),
        (experiment_of(PROGRAM | {"candidates": ["w8", "a8"]}), ["'w8' says nothing of activations", "null: 16 bit"]),
        (experiment_of(PROGRAM, PROGRAM), ["programs.1.candidates", "program 0 decides on weights already"]),
        (experiment_of(PROGRAM, weights={"format": "nf4"}), ["methods.mix.weights", "decide on weights; drop the key"]),
        (experiment_of(PROGRAM | {"candidates": [*BOTH]}), ["programs.0.budget.bits", "two budgets"]),
        (experiment_of(PROGRAM | {"objective": DECOUPLED, "budget": {"joules": 1}}), ["programs.0.objective", "bits"]),
        (experiment_of(PROGRAM | {"candidates": ["a8", "a4"], "budget": {"megabytes": 1}}, weights={"format": "nf4"}),
         ["programs.0.budget: these candidates set activations alone", "give it in bits"]),
        (experiment_of(PROGRAM | {"protect": 0.1}), ["programs.0.protect", "program of activations"]),
        (experiment_of(PROGRAM | {"split": {"low": 1, "high": 2, "count": 2}}), ["programs.0.split", "one objective"]),
        (experiment_of(PROGRAM | {"budget": {"bits": 4, "joules": 1}}), ["programs.0.budget", "give one of 'bits'"]),
        (experiment_of(PROGRAM | {"budget": {"bits": 4, "of": "baseline"}}), ["programs.0.budget", "last three"]),
        (experiment_of(PROGRAM | {"objective": "fid"}), ["programs.0.objective", "'fid' is none of ssim"]),
        (experiment_of(PROGRAM | {"bugdet": 3}), ["programs.0", "unknown key 'bugdet'", "'budget'"]),
        (experiment_of(PROGRAM, sensitivity={"candidates": {"w8": {"weights": {"format": "integer", "bits": 8,
         "granularity": "group"}}}}), ["sensitivities.alone.candidates.w8.weights.group_size: missing"]),
        (experiment_of(PROGRAM, sensitivity={"candidates": {"a8": {"activations": {"bits": 8, "dynamic": False}}}}),
         ["candidates.a8.activations.granularity", "set 'tensor'"]),
        (experiment_of(PROGRAM, sensitivity={"candidates": {"q": {"weights": {"format": "quanto",
         "weights": "qint4"}}}}),
         ["candidates.q.weights.format", "stored by its library"]),
        (experiment_of(PROGRAM, sensitivity={"transforms": [{"name": "smoothing"}]}),
         ["sensitivities.alone.transforms.0.name", "'smoothing' belongs to a method"]),
        (experiment_of(PROGRAM, sensitivity={"images": 9999}), ["sensitivities.alone.images", "9999"]),
        (experiment_of(PROGRAM, sensitivity={"prompts": "resources/prompts/shape-test.txt"}),
         ["sensitivities.alone.prompts", "shapes-test.txt"]),
        (experiment_of(PROGRAM, sensitivity={"candidates": {"baseline": {"weights": None}}}),
         ["candidates", "baseline"]),
        (experiment_of(PROGRAM | {"candidates": ["a8"]}), ["programs: none decides on weights", "add a program"]),
        (experiment_of(PROGRAM | {"candidates": ["x"], "budget": {"joules": 1}}, sensitivity={"candidates": {"x":
         {"weights": None, "activations": {"bits": 8}}}}), ["programs.0.candidates: 'x' has 16-bit weights"]),
        (experiment_of(PROGRAM, sensitivity={"transforms": [{"name": "split-skips"}]}),
         ["mix.allocation.sensitivity", "tries layers with 'split-skips'"]),
        (experiment_of(PROGRAM, transforms=[{"name": "bos"}]),
         ["mix.allocation.sensitivity", "'alone' tries layers whose first token is rounded", "give it that transform"]),
        (experiment_of(PROGRAM, transforms=[{"name": "segments"}]),
         ["mix.allocation.sensitivity", "tries whole layers that 'segments' takes apart"]),
        (experiment_of(PROGRAM, solver={"name": "auto-gptq"}, weights=None), ["mix.allocation.name", "'auto-gptq'"]),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_by_file_entry_and_key(raw, words):
    with pytest.raises(ConfigurationError) as caught:
        check_experiment(raw, "mine.yaml")
    sentence = str(caught.value)
    assert sentence.startswith("mine.yaml: ") and "\n" not in sentence
    for word in words:
        assert word in sentence


def test_a_sensitivity_that_is_not_there():
    raw = experiment_of(PROGRAM)
    raw["methods"]["mix"]["allocation"]["sensitivity"] = "alome"
    with pytest.raises(
        ConfigurationError, match="mix.allocation.sensitivity: there is no .* 'alome'; did you mean 'alone'"
    ):
        check_experiment(raw, "mine.yaml")


def test_the_documentations_example_is_an_experiment():
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/methods.md").read_text(), re.DOTALL)
                  if "sensitivities:" in block]  # fmt: skip
    raw = experiment_of(PROGRAM) | yaml.safe_load(example)
    raw["methods"]["float"] = None
    raw["calibration"] = {"prompts": "resources/prompts/shapes-calibration.txt", "steps": 1}
    loaded = check_experiment(raw, "methods.md")
    assert set(loaded["methods"]["half-the-time"]["allocation"]["candidates"]) == {"int8", "float"}


def test_a_mixed_method_is_no_baseline():
    raw = experiment_of(PROGRAM)
    raw["baseline"] = "mix"
    with pytest.raises(ConfigurationError, match="baseline: method 'mix' is quantized"):
        check_experiment(raw, "mine.yaml")


def test_a_budget_that_this_device_cannot_meet_ends_as_a_cell_that_says_so(tmp_path):
    model = {"model": "tiny", "settings": {"family": "sd3", "dtype": "float32"}, "location": ".", "layers": LAYERS,
             "denoiser_bytes": 10_000}  # fmt: skip
    manifest.write_json(tmp_path / "model.json", model)
    scores = [{"layer": n, "candidate": c, **row} for n, rows in table().items() for c, row in rows.items()]
    taken = [
        {"layer": n, "candidate": c, "megabytes": 1.0, "kernel": None, "reason": None, **row}
        for n, rows in costs().items()
        for c, row in rows.items()
    ]
    csv_files.write(tmp_path / "scores.csv", sensitivity_table.COLUMNS, scores)
    csv_files.write(tmp_path / "costs.csv", sensitivity_table.COSTS, taken)
    method = method_of({"candidates": [*BOTH], "budget": {"milliseconds": 0.4, "of": "baseline"}})
    given = ["--model", str(tmp_path / "model.json"), "--method-name", "m", "--method", json.dumps(method)]
    found, allocated, done = (str(tmp_path / name) for name in ("found.json", "allocation.json", "out/manifest.json"))
    tables = ["--sensitivity", str(tmp_path / "scores.csv"), "--costs", str(tmp_path / "costs.csv")]
    candidates.main([*given, *tables, "--output", found, "--table", str(tmp_path / "found.csv")])
    allocate.main([*given, "--candidates", found, "--output", allocated])
    quantize.main([*given, "--allocation", allocated, "--output", done])
    cell = manifest.read_json(done)
    assert cell["status"] == "unsupported" and "the nearest feasible budget is 7.5 ms" in cell["reason"]
    assert sensitivity_table.read(tmp_path / "found.csv", candidates.COLUMNS) == []
