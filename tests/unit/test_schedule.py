"""Formats that depend on the step of a drawing: how steps are counted, what is stored, and what images they give."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import allocate as allocate_rule
import model as model_rule
import quantize as quantize_rule
from quantwatt.allocate.ranges import allocate_ranges
from quantwatt.artifacts import checkpoint_files, layer_variants, manifest, step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import ConfigurationError, check_experiment
from quantwatt.config.method_entries import complete_method
from quantwatt.config.schedule_entries import complete_schedule
from quantwatt.inference import checkpoint, exports, kernel_choice, scheduled
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration, sequential
from quantwatt.quantize import scheduled as quantizing

ROOT = Path(__file__).parents[2]
EXPERIMENT = yaml.safe_load((ROOT / "resources/experiments/embedded.yaml").read_text())
MODEL = EXPERIMENT["models"]["tiny-sd3"] | {"variant": None, "offload": None}
DRAWING = Drawing(steps=4, guidance=2.0, height=64, width=64)
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]
W4A8 = {
    "weights": {"format": "integer", "bits": 4, "granularity": "channel"},
    "activations": {"bits": 8, "granularity": "token"},
}
W8 = {"weights": {"format": "integer", "bits": 8, "granularity": "channel", "symmetric": True}}
FLOAT = {"weights": None}


def method_of(schedule=None, **entry):
    method = complete_method(W4A8 | entry | {"schedule": schedule}, "mine.yaml", "methods.m")
    return complete_schedule(method, "mine.yaml", "methods.m")


@pytest.fixture(scope="module")
def family():
    return load_family("sd3")


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """The folder of the embedded model with its first and its last block alone."""
    folder = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(ROOT / MODEL["path"], folder)
    config = manifest.read_json(folder / "transformer/config.json")
    manifest.write_json(folder / "transformer/config.json", config | {"num_layers": 2})
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    last = f"transformer_blocks.{config['num_layers'] - 1}."
    middle = tuple(f"transformer_blocks.{block}." for block in range(1, config["num_layers"] - 1))
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(middle)}
    save_file({name.replace(last, "transformer_blocks.1."): kept[name] for name in kept}, path, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def layers(family, location):
    denoiser = family.meta_denoiser(location)
    return {
        name: {"in_features": (layer := denoiser.get_submodule(name)).in_features, "out_features": layer.out_features}
        for name in family.quantizable(denoiser)
    }


@pytest.fixture(scope="module")
def recorded(family, location):
    more = {"prompts": "", "batch_size": 2, "timesteps": 4, "timesteps_per_prompt": 4, "seed": 7}
    settings = Calibration.from_settings(DRAWING.to_settings() | more)
    samples, rows = calibration.record(family, family.load(MODEL, location), PROMPTS, settings)
    return quantizing.CalibrationSet(samples, rows, batch=4, steps=DRAWING.steps)


@pytest.fixture(scope="module")
def quantized(family, location, layers):
    """(states, reports) of a method with a schedule."""

    def of(method, calibrated=None):
        ranges = allocate_ranges(layers, method, "m")
        return quantizing.quantize(
            lambda: family.load_denoiser(MODEL, location), family, ranges, method, calibrated
        ), ranges  # fmt: skip

    return of


@pytest.fixture(scope="module")
def saved(family, location, layers, quantized, tmp_path_factory):
    """The manifest of a checkpoint of a method."""

    def of(method):
        folder = tmp_path_factory.mktemp("checkpoint")
        details = {"status": "ok", "reason": None, "model_settings": MODEL, "location": location}
        denoiser = family.load_denoiser(MODEL, location)
        if method["schedule"]:
            (states, reports), ranges = quantized(method)
            details |= quantize_rule.over_ranges(layers, reports, ranges, "float32")
        else:
            states, reports = sequential.quantize(denoiser, family, allocate_ranges(layers, method, "m"), method)
        checkpoint_files.save(folder, denoiser, states, reports, details)
        return folder / "manifest.json"

    return of


def draw(pipeline, **options):
    return pipeline.generate(PROMPTS, [3, 4], DRAWING, **options)


def test_steps_of_ranges_fill_a_drawing():
    assert step_ranges.counts([3, None, 2], 20) == [3, 15, 2] and step_ranges.counts([1, 2], 3) == [1, 2]
    assert [step_ranges.range_of(step, [1, 2, 1]) for step in range(5)] == [0, 1, 1, 2, 2]
    assert step_ranges.equal(3, 20) == [7, 6, 7] and step_ranges.equal(2, 4) == [2, 2]
    assert step_ranges.average([4.0, 16.0], [3, 1]) == 7
    assert step_ranges.words([1, 2, None, 2, 1]) == [
        "step 1", "steps 2-3", "steps 4 to the last but 3", "the last 3 but 1", "the last step",
    ]  # fmt: skip
    with pytest.raises(DataError, match="its ranges take 6 steps beside the rest, and a drawing of 6 leaves none"):
        step_ranges.counts([3, None, 3], 6)
    with pytest.raises(DataError, match="its ranges take 5 steps, and a drawing has 4"):
        step_ranges.counts([3, 2], 4)


STEPS = {  # {scheduler: the step, from 0, of each evaluation in a drawing of 4}
    "FlowMatchEulerDiscreteScheduler": [0, 1, 2, 3],
    "CMStochasticIterativeScheduler": [0, 1, 2, 3],
    "DDIMScheduler": [0, 1, 2, 3],
    "HeunDiscreteScheduler": [0, 1, 1, 2, 2, 3, 3],
    "FlowMatchHeunDiscreteScheduler": [0, 1, 1, 2, 2, 3, 3],
    "KDPM2DiscreteScheduler": [0, 0, 1, 1, 2, 2, 3],
}


@pytest.mark.parametrize("name", STEPS)
def test_the_scheduler_tells_the_step(name):
    import diffusers

    scheduler, now = getattr(diffusers, name)(), []
    scheduled.follow(scheduler, [1, None, 1], lambda index: now.append(index))
    for _ in range(2):  # drawings
        entered = []
        scheduler.set_timesteps(4)
        sample = torch.ones(1, 2, 2)
        for timestep in scheduler.timesteps:
            entered.append(now[-1])  # however often the denoiser is called
            if hasattr(scheduler, "scale_model_input"):
                sample = scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(0.1 * sample, timestep, sample)[0]
        assert entered == [{0: 0, 3: 2}.get(step, 1) for step in STEPS[name]]
    with pytest.raises(DataError, match="schedule: its ranges take 2 steps beside the rest, and a drawing of 2 leaves"):
        scheduler.set_timesteps(2)


def test_images_are_those_of_switching_by_hand(family, location, saved):
    pipeline = checkpoint.load_pipeline(saved(method_of({"first": 1, "last": 1})), simulate=True)
    uniform = checkpoint.load_pipeline(saved(method_of()), simulate=True)
    plain, count = family.load(MODEL, location), 0
    whole, quantized = plain.transformer.forward, uniform.pipeline.transformer.forward

    def forward(*args, **kwargs):
        nonlocal count
        step, count = count % DRAWING.steps, count + 1  # SD3 calls its denoiser once a step
        return (whole if step in (0, DRAWING.steps - 1) else quantized)(*args, **kwargs)

    plain.transformer.forward = forward
    by_hand = family.generate(plain, PROMPTS, [3, 4], DRAWING)
    images = draw(pipeline)
    assert np.array_equal(images, (by_hand.clip(0, 1) * 255).round().astype(np.uint8))
    assert np.array_equal(draw(pipeline), images) and not np.array_equal(draw(uniform), images)
    pipeline.generate(PROMPTS[:1], [3], DRAWING, steps=3)
    run, denoise = pipeline.prepare(PROMPTS, [3, 4], DRAWING), pipeline.phases(PROMPTS, [3, 4], DRAWING)["denoise"]
    latents = denoise()
    assert np.array_equal((run().float().movedim(1, -1).numpy() * 255).round().astype(np.uint8), images)
    assert torch.equal(denoise(), latents)
    with pytest.raises(DataError, match="schedule: its ranges take 2 steps beside the rest, and a drawing of 2"):
        draw(pipeline, steps=2)


def test_one_format_in_all_ranges_is_the_uniform_method_bit_for_bit(saved):
    ranges, uniform = saved(method_of([{"steps": 1}, {}])), saved(method_of())
    tensors = [load_file(path.parent / "weights.safetensors") for path in (ranges, uniform)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    formats = [
        {name: layer["weights"] for name, layer in manifest.read_json(path)["layers"].items()}
        for path in (ranges, uniform)
    ]
    assert formats[0] == formats[1]
    images = [draw(checkpoint.load_pipeline(path, simulate=True)) for path in (ranges, uniform)]
    assert np.array_equal(*images)


def test_a_format_is_stored_once_and_sixteen_bits_only_where_they_compute(saved, layers):
    twice = saved(method_of([{"steps": 1, **W8}, {"steps": None}, {"steps": 1, **W8}]))
    uniform, wide = (saved(method_of(**formats)) for formats in ({}, W8))
    sizes = [manifest.read_json(path)["size_bytes"] for path in (twice, uniform, wide)]
    tensors = load_file(twice.parent / "weights.safetensors")
    name = next(iter(layers))
    entry = manifest.read_json(twice)["layers"][name]
    assert entry["ranges"] == [1, 0, 1] and [v["weights"]["bits"] for v in entry["variants"]] == [4, 8]
    assert f"{name}.codes" in tensors and f"{name}.codes@1" in tensors and f"{name}.weight" not in tensors
    rest = sizes[1] - sum(_bytes(tensors, layer, "") for layer in layers)
    assert abs(sizes[0] - rest - sum(_bytes(tensors, layer, suffix) for layer in layers for suffix in ("", "@1"))) < 1e5
    assert sizes[0] < sizes[1] + sizes[2]
    ends = load_file(saved(method_of({"first": 1})).parent / "weights.safetensors")
    assert f"{name}.weight" in ends and f"{name}.codes@1" not in ends


def _bytes(tensors, layer, suffix):
    return sum(t.nbytes for name, t in tensors.items() if name.startswith(f"{layer}.") and name.endswith(suffix or "s"))


def test_equal_values_of_two_formats_are_shared(saved, layers):
    path = saved(method_of([{"steps": 2, "activations": None}, {}]))
    tensors, described = load_file(path.parent / "weights.safetensors"), manifest.read_json(path)
    entry = described["layers"][next(iter(layers))]
    assert entry["variants"][1]["shares"] == {part: 0 for part in entry["variants"][1]["parts"]}
    assert not any("@" in name for name in tensors)
    first, second = described["schedule"]
    assert (first["activation_bits"], second["activation_bits"]) == (32, pytest.approx(8, abs=10))
    assert described["stored_bits"] == pytest.approx(second["weight_bits"])
    assert draw(checkpoint.load_pipeline(path, simulate=True)).shape == (2, 64, 64, 3)


def test_a_range_is_calibrated_on_its_own_steps(family, location, layers, recorded, quantized):
    method = method_of({"first": 1, "last": 1}, solver={"name": "gptq", "held_out": 0})
    (states, _), ranges = quantized(method, recorded)
    kept = [i for i, row in enumerate(recorded.rows) if row["step"] in (1, 2)]
    samples = {name: tensor[kept] for name, tensor in recorded.samples.items()}
    own, _ = sequential.quantize(
        family.load_denoiser(MODEL, location), family, ranges[1]["layers"], method, samples, recorded.batch
    )
    assert all(torch.equal(tensor, own[name][part]) for name in own for part, tensor in states[name].items())
    everything, _ = sequential.quantize(
        family.load_denoiser(MODEL, location), family, ranges[1]["layers"], method, recorded.samples, recorded.batch
    )
    assert any(not torch.equal(states[name]["codes"], everything[name]["codes"]) for name in own)
    few = copy.copy(recorded)
    few.rows = [row | {"step": 0} for row in recorded.rows]
    with pytest.raises(DataError, match="calibration.timesteps: no sample is of steps 2 to the last but 1 of the sch"):
        quantized(method, few)
    few.steps = 2
    with pytest.raises(DataError, match=r"schedule: its ranges take 2 steps .* leaves none \(calibration.steps\)"):
        quantized(method, few)


def test_what_two_networks_share_is_solved_once(family, location, layers, recorded, monkeypatch):
    method = method_of(solver={"name": "qronos", "held_out": 0})
    whole = allocate_ranges(layers, method, "m")
    first, *others = whole
    ranges = [{"steps": 1, "layers": {name: whole[name] for name in others}}, {"steps": None, "layers": whole}]
    solved, real = [], sequential.quantize

    def count(*args, **kwargs):
        states, reports = real(*args, **kwargs)
        solved.append(set(states))
        return states, reports

    monkeypatch.setattr(sequential, "quantize", count)
    states, reports = quantizing.quantize(
        lambda: family.load_denoiser(MODEL, location), family, ranges, method, recorded
    )  # fmt: skip
    assert solved == [set(whole)]  # the longer range has all that the other has
    assert reports[first]["ranges"] == [None, 0] and all("ranges" not in reports[name] for name in others)
    middle = {**whole, first: {**whole[first], "activations": None}}
    solved.clear()
    ranges[0]["layers"] = middle
    states, reports = quantizing.quantize(
        lambda: family.load_denoiser(MODEL, location), family, ranges, method, recorded
    )  # fmt: skip
    assert solved == [set(whole), {first}] and reports[first]["ranges"] == [1, 0]
    assert set(states) == set(whole) and all("ranges" not in reports[name] for name in others)


def test_it_is_real_only_where_every_variant_is(saved, layers):
    path = saved(method_of([{"steps": 1, "weights": {"format": "mxfp8"}, "activations": {"format": "mxfp8"}}, {}]))
    described = manifest.read_json(path)["layers"]
    compute, computed, reason = kernel_choice.compute_of(described, "cpu")
    assert (compute, computed) == ("simulated", None) and "mxfp8" in reason
    real = {name: layer | {"variants": [layer["variants"][0]] * 2} for name, layer in described.items()}
    assert kernel_choice.compute_of(real, "cpu")[0] == kernel_choice.compute_of(
        dict(layer_variants.flat(real)), "cpu"
    )[0]  # fmt: skip
    with pytest.raises(DataError, match="its formats depend on the step of a drawing, which gptq cannot express"):
        exports.export(path, "gptq", path.parent / "other")


def test_the_kernels_of_all_ranges_compute(saved, monkeypatch):
    path = saved(method_of([{"steps": 1, **W8}, {"steps": 2, **FLOAT}, {"activations": None}]))
    pipeline = checkpoint.load_pipeline(path)
    assert pipeline.compute == "real" and pipeline.kernel
    images = draw(pipeline)
    monkeypatch.setattr(kernel_choice, "compute_of", lambda *asked: ("simulated", None, "it is asked for"))
    simulated = draw(checkpoint.load_pipeline(path, simulate=True))
    assert np.abs(images.astype(int) - simulated).mean() < 2


def test_a_compiled_layer_switches():
    variants = [torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)]
    layer = scheduled.ScheduledLayer(variants, [1, 0, 1])
    denoiser, inputs = torch.nn.Sequential(layer), torch.ones(1, 2)
    assert (layer.in_features, layer.weight.shape) == (2, (3, 2))  # as pipelines read them
    denoiser.compile(backend="eager")
    for index in (0, 1, 2, 0):
        scheduled.enter(scheduled.layers_of(denoiser), index)
        assert torch.equal(denoiser(inputs), variants[layer.ranges[index]](inputs))
    copied = copy.deepcopy(layer)
    copied.enter(1)
    assert copied.active is copied.variants[0] and layer.active is variants[1]


def test_the_rules_pass_a_schedule_on(location, tmp_path):
    settings = MODEL | {"path": location}
    method = method_of({"first": 1})
    paths = {name: tmp_path / f"{name}.json" for name in ("model", "allocation")}
    made = tmp_path / "m/manifest.json"
    named = ["--method-name", "m", "--method", manifest.canonical_json(method)]
    model_rule.main(["--model", "m", "--settings", manifest.canonical_json(settings), "--output", str(paths["model"])])
    allocate_rule.main(["--model", str(paths["model"]), *named, "--output", str(paths["allocation"])])
    inputs = ["--model", str(paths["model"]), "--allocation", str(paths["allocation"])]
    quantize_rule.main([*inputs, *named, "--output", str(made)])
    details = manifest.read_json(made)
    assert [entry["steps"] for entry in details["schedule"]] == [1, None]
    assert details["schedule"][0]["weight_bits"] == 32 and 4 < details["schedule"][1]["weight_bits"] < 6
    assert details["stored_bits"] == pytest.approx(32 + details["schedule"][1]["weight_bits"], abs=0.01)
    layer = next(iter(details["layers"].values()))
    assert layer["ranges"] == [None, 0] and layer["variants"][0]["seconds"] > 0
    assert checkpoint.load_pipeline(made, simulate=True).generate(PROMPTS[:1], [0], DRAWING).shape == (1, 64, 64, 3)


def experiment_of(method, **changes):
    raw = EXPERIMENT | {"methods": {"float32": None, "m": method}} | changes
    return check_experiment(raw, "mine.yaml")["methods"]["m"]


def test_a_schedule_is_completed_to_ranges():
    ends = experiment_of(W4A8 | {"schedule": {"first": 3, "last": 2}})["schedule"]
    none = {"weights": None, "activations": None}
    assert ends == [{"steps": 3, **none}, {"steps": None}, {"steps": 2, **none}]
    ranges = experiment_of(W4A8 | {"schedule": [{"steps": 5, **W8}, {"weights": None}]})["schedule"]
    assert ranges[0]["weights"]["group_size"] is None and "activations" not in ranges[0]
    assert ranges[1] == {"steps": None, **none}


REFUSED = {
    "methods.m.schedule: its ranges take 20 steps beside the rest, and a drawing of 20 leaves none "
    "(samplings.steps-20.steps).": W4A8 | {"schedule": {"first": 10, "last": 10}},
    "methods.m.schedule: its ranges take 5 steps, and a drawing has 20 (samplings.steps-20.steps).": W4A8
    | {"schedule": [{"steps": 3}, {"steps": 2, **FLOAT}]},
    "methods.m.schedule: first and last are 0, so that all steps are alike; drop the key.": W4A8 | {"schedule": {}},
    "methods.m.schedule: two ranges without `steps`, and one alone can take what is left.": W4A8
    | {"schedule": [{}, FLOAT]},
    "methods.m.schedule: no step is quantized; leave out the weights of a range.": W4A8 | {"schedule": [FLOAT]},
    "methods.m.schedule.0.activations: layers of 16-bit weights keep 16-bit activations; drop the key.": W4A8
    | {"schedule": [{"weights": None, "activations": {"bits": 8}}, {"steps": 1}]},
    "methods.m.schedule: there is nothing to quantize with it, because methods.m.weights is missing.": {
        "schedule": {"first": 1}
    },
    "methods.m.schedule: 'torchao' is stored and computed by its library, in all steps alike; drop the key.": {
        "weights": {"format": "torchao", "configuration": "int8-weight-only"}, "schedule": {"first": 1},
    },
    "methods.m.schedule: 'auto-gptq' solves each layer once, for all steps alike; drop the key.": W4A8
    | {"solver": {"name": "auto-gptq"}, "schedule": {"first": 1}},
    "methods.m.schedule.0.weights: the allocation's overrides change the method's own formats; drop them, or leave "
    "the range those.": W4A8 | {"schedule": [{"steps": 1, **W8}, {}],
                                "allocation": {"name": "uniform", "overrides": {"*": {"weights": {"bits": 8}}}}},
    "methods.m.schedule: a rotation that is folded changes layers in all steps, and also those that stay unquantized; "
    "set fold: false.": W4A8 | {"schedule": {"first": 1}, "transforms": [{"name": "hadamard", "fold": True}]},
    "methods.m.schedule.0: unknown key 'step'; did you mean 'steps'.": W4A8 | {"schedule": [{"step": 1}]},
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_wrong_schedule_is_refused_in_a_sentence(sentence):
    with pytest.raises(ConfigurationError) as caught:
        experiment_of(REFUSED[sentence])
    assert str(caught.value) == f"mine.yaml: {sentence}"


def test_text_models_have_no_steps():
    raw = yaml.safe_load((ROOT / "resources/experiments/embedded-text.yaml").read_text())
    raw["methods"]["m"] = W4A8 | {"schedule": {"first": 1}}
    with pytest.raises(ConfigurationError, match="methods.m.schedule: text models have no steps; drop the key"):
        check_experiment(raw, "mine.yaml")
