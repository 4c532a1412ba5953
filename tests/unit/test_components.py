"""Text encoders and autoencoders are quantized beside the denoiser, each on what it receives, and stored once."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import tiny_parts
import tiny_pipelines
import tiny_popular
import torch
from plans import plan_of

import allocate
import calibrate
import model as model_rule
import quantize
import share_weights
from quantwatt.artifacts import component_files, manifest
from quantwatt.artifacts.errors import DataError, DegenerateImages
from quantwatt.config import inputs, methods
from quantwatt.config.experiment import ConfigurationError, check_experiment
from quantwatt.inference.checkpoint import load_pipeline
from quantwatt.models import components
from quantwatt.models.denoiser_inputs import nested
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration, sequential
from quantwatt.report import component_table
from quantwatt.report.cells import Cell

W4, W8 = {"format": "integer", "bits": 4}, {"format": "integer", "bits": 8, "symmetric": True}
GPTQ = {"solver": {"name": "gptq"}, "weights": W4}
STATIC = {"weights": W8, "activations": {"bits": 8, "granularity": "tensor", "dynamic": False}}
TEXTS = ["a red circle on the left", "a large blue square on a white background"]
DRAWN = Drawing(steps=2, guidance=3.0, height=16, width=16)
CALIBRATION = {
    "prompts": "resources/prompts/shapes-calibration.txt", "steps": 2, "guidance": 3.0, "height": 16, "width": 16,
    "timesteps": 1, "timesteps_per_prompt": 1, "batch_size": 2,
}  # fmt: skip
SD3 = {"family": "sd3", "path": "resources/models/tiny-sd3", "text_encoder_3": False}


def stable_diffusion_3(folder):
    """Stable Diffusion 3 with two CLIPs and T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * tiny_parts.WIDTH, caption_projection_dim=tiny_parts.WIDTH,
        pooled_projection_dim=2 * tiny_parts.WIDTH, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    plain, tokenizer = tiny_parts.clip()
    first, second = (CLIPTextModelWithProjection(plain.config).eval() for _ in range(2))
    t5, t5_tokenizer = tiny_parts.t5()
    pipeline = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), tiny_parts.vae(), first, tokenizer, second, tokenizer, t5,
        t5_tokenizer,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


BUILT = {
    "sd3": stable_diffusion_3,
    "flux": tiny_pipelines.flux,
    "pixart": tiny_pipelines.pixart,
    "lumina2": tiny_popular.lumina2,
    "qwen-image": tiny_pipelines.qwen_image,
}
# {pipeline: (component, whether a mask excludes padding)}
ENCODERS = {"sd3": ("text_encoder_3", False), "pixart": ("text_encoder", True), "lumina2": ("text_encoder", True),
            "qwen-image": ("text_encoder", True), "flux": ("text_encoder", False)}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in BUILT.items()}


def settings_of(name, folder):
    own = {"text_encoder_3": True, "max_sequence_length": 12} if name == "sd3" else {}
    if name != "sd3":
        own = {"arguments": tiny_pipelines.ARGUMENTS.get(name, {})}
    return {"family": "sd3" if name == "sd3" else "diffusers", "path": str(folder), "dtype": "float32", **own}


def experiment_of(entries, model=SD3, **changes):
    return {
        "models": {"m": model}, "baseline": "float", "methods": {"float": None, **entries},
        "samplings": {"s": {"prompts": "resources/prompts/shapes-test.txt", "images": 2, "steps": 2}},
        "calibration": CALIBRATION,
    } | changes  # fmt: skip


def completed(entry, model=SD3):
    return check_experiment(experiment_of({"x": entry}, model), "mine.yaml")["methods"]["x"]


# Entries


def test_the_denoiser_is_a_component_too():
    denoiser = {"solver": {"name": "gptq"}, "weights": W4, "activations": {"bits": 8}}
    vae = {"weights": W8}
    assert completed({"components": {"transformer": denoiser}}) == completed(denoiser)
    assert completed({"components": {"transformer": denoiser, "vae": vae}}) == completed(
        denoiser | {"components": {"vae": vae}}
    )
    assert "components" not in completed(denoiser) and "components" not in completed({"components": None})


def refused_for(entry, model=SD3):
    with pytest.raises(ConfigurationError) as refused:
        completed(entry, model)
    return str(refused.value)


GPT2 = {"family": "gpt2", "path": "resources/models/tiny-gpt2"}
BOS, MIXED = {"name": "bos"}, {"name": "mixed", "sensitivity": "s", "programs": []}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"components": {"text_encoder_4": {"weights": W4}}},
            r"text_encoder_4: model 'm' has no such .*text_encoder_2",
        ),
        ({"components": {"unet": {"weights": W4}}}, "components.unet: model 'm' has no such component"),
        ({"components": {"text_encoder_3": {"weights": W4}}}, "text_encoder_3: models.m leaves it out"),
        ({"components": {"vae": None}}, "components.vae.weights: missing, so that nothing is quantized"),
        ({"components": {"vae": {"activations": {"bits": 8}}}}, "components.vae.weights: missing"),
        ({"components": {"vae": {"weight": W4}}}, "components.vae: unknown key 'weight'"),
        (
            {"weights": W4, "components": {"transformer": {"weights": W4}}},
            r"x\.weights: components.transformer says it",
        ),
        ({"components": {"vae": GPTQ | {"solver": {"name": "brecq"}}}}, "'brecq' solves denoisers alone"),
        ({"components": {"vae": {"weights": W4, "transforms": [BOS]}}}, "'bos' is for layers of denoisers"),
        ({"components": {"vae": {"weights": W4, "allocation": MIXED}}}, "'mixed' is of the denoiser's layers"),
    ],
)
def test_what_no_component_can_be_is_refused_in_a_sentence(entry, words):
    sentence = refused_for(entry)
    assert sentence.startswith("mine.yaml: methods.x.") and "\n" not in sentence
    assert re.search(words, sentence), sentence


def test_other_models_are_asked_for_their_components(folders):
    flux = {"family": "diffusers", "path": str(folders["flux"])}
    assert "components" in completed({"components": {"text_encoder_2": {"weights": W4}}}, flux)
    assert "(it has transformer, text_encoder, text_encoder_2, vae)" in refused_for(
        {"components": {"text_encoder_3": {"weights": W4}}}, flux
    )
    hub = {"family": "sd3", "hub": "a/b", "revision": "0" * 40}
    assert "has no such component" in refused_for({"components": {"text_encoders": {"weights": W4}}}, hub)
    without = experiment_of({"x": {"components": {"vae": GPTQ}}}, calibration=None)
    with pytest.raises(ConfigurationError, match="calibration: missing, and method 'x' needs calibration data"):
        check_experiment(without, "mine.yaml")


def test_methods_share_the_weights_of_what_they_quantize_equally():
    def change(entries):
        text = {"text_encoder": {"weights": W4}}
        entries["methods"] |= {
            "text": {"components": text},
            "both": {"weights": W8, "components": text | {"vae": GPTQ}},
            "denoiser": {"weights": W8},
            "other-type": {"dtype": "bfloat16", "components": text},
        }

    plan = plan_of("smoke", change)
    names = sorted(name for name, _ in plan.components)
    assert names == ["text_encoder", "text_encoder", "vae"]  # that of another type is another
    joined = {name: file for name, file in plan.weights_of.items() if name in ("text", "both", "other-type")}
    assert joined == {
        "text": ("checkpoint", "float32"), "both": ("checkpoint", "denoiser"), "other-type": ("shared", "other-type"),
    }  # fmt: skip
    made = {
        name: inputs.files(plan, "share_weights", {"model": "tiny-sd3", "method": name}) for name in ("text", "both")
    }
    assert made["text"]["components"][0] in made["both"]["components"] and len(made["both"]["components"]) == 2
    [(_, vae)] = [key for key in plan.components if key[0] == "vae"]
    wildcards = {"model": "tiny-sd3", "component": "vae", "hash": vae}
    assert list(inputs.files(plan, "quantize_component", wildcards)) == ["calibration"]
    assert plan.plugins("quantize_component", wildcards) == ["families/sd3", "formats/integer", "solvers/gptq"]
    assert "formats/integer" in plan.plugins("generate", {"model": "tiny-sd3", "method": "text", "sampling": "steps-4"})


# Networks


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoder_is_calibrated_on_what_it_receives(folders, name):
    """Its error on these inputs is below that of rounding, and padding that a mask excludes is not counted."""
    component, masked = ENCODERS[name]
    settings, folder = settings_of(name, folders[name]), folders[name]
    family = load_family(settings["family"])
    part = components.load(family, settings, folder, component)
    entry = Calibration.from_settings(CALIBRATION)
    pipeline = family.load(settings, folder)
    samples, rows = calibration.record_component(part, component, family, pipeline, [*TEXTS, "x"], entry)
    assert len(rows) == len(samples["input_ids"]) >= 3 and {row["prompt"] for row in rows} == {0, 1, 2}
    assert masked == ("attention_mask" in samples)
    layers = {layer: {} for layer in part.quantizable(part.meta_network(folder))}
    found = {}
    for solver in ({"name": "rtn"}, {"name": "gptq", "held_out": 0}):  # else tokens held out are not counted
        method = completed({"solver": solver, "weights": {**W4, "bits": 3}}, SD3)
        allocation = {layer: {"weights": method["weights"], "activations": None} for layer in layers}
        network = part.load_network(settings, folder)
        with torch.no_grad():
            expected = network(**nested(samples))[0]
        _, reports = sequential.quantize(network, part, allocation, method, samples, batch=2)
        with torch.no_grad():
            found[solver["name"]] = (network(**nested(samples))[0] - expected).norm().item()
    assert set(reports) == set(layers)
    real = int(samples["attention_mask"].sum()) if masked else samples["input_ids"].numel()
    assert {report["tokens"] for report in reports.values()} == {real}
    assert min(found.values()) > 0
    assert np.mean([report["relative_error"] for report in reports.values()]) < np.mean(
        [report["error_before"] for report in reports.values()]
    )


def rule(main, **options):
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    main(words)


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """(folder with the checkpoints float and whole of FLUX, the method)."""
    out = tmp_path_factory.mktemp("made")
    entry = {"text_encoder": STATIC, "text_encoder_2": {"weights": W4}, "vae": STATIC}
    model = settings_of("flux", folders["flux"])
    whole = check_experiment(experiment_of({"whole": {"components": entry}}, model), "mine.yaml")
    described, method = out / "model.json", whole["methods"]["whole"]
    rule(model_rule.main, model="m", settings=json.dumps(whole["models"]["m"]), output=described)
    plain = {"model": described, "method_name": "float", "method": json.dumps(whole["methods"]["float"])}
    rule(allocate.main, **plain, output=out / "allocation.json")
    rule(quantize.main, **plain, allocation=out / "allocation.json", output=out / "float/manifest.json")
    prompts = out / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    drawn = json.dumps({**whole["calibration"], "prompts": str(prompts)})
    weights = []
    for name in entry:
        own = methods.of_component(method, name)
        asked = {"model": described, "component": name, "method": json.dumps(own), "method_name": "hash"}
        rule(allocate.main, **asked, output=out / name / "allocation.json")
        if methods.needs_calibration(own):
            recorded = out / name / "calibration/manifest.json"
            rule(calibrate.main, model=described, component=name, calibration=drawn, output=recorded)
            asked["calibration"] = recorded
        weights.append(out / name / "manifest.json")
        rule(quantize.main, **asked, allocation=out / name / "allocation.json", output=weights[-1])
    shared = {"weights": out / "float/manifest.json", "components": weights}
    rule(
        share_weights.main, **shared, method_name="whole", method=json.dumps(method), output=out / "whole/manifest.json"
    )
    return out, method


def test_a_whole_pipeline_is_quantized_loaded_and_draws(made):
    out, _ = made
    details = manifest.read_json(out / "whole/manifest.json")
    assert details["status"] == "ok" and details["layers"] == {} and details["denoiser"] == "transformer"
    assert {name.partition("/")[0] for name in component_files.quantized_layers(details)} == {
        "text_encoder", "text_encoder_2", "vae",
    }  # fmt: skip
    sizes = details["component_bytes"]
    assert all(part["size_bytes"] < sizes[name] for name, part in details["components"].items())
    assert details["quantize"]["seconds"] > 0
    loaded, plain = (load_pipeline(out / name, simulate=True) for name in ("whole", "float"))
    assert loaded.compute in ("real", "simulated")  # as this CPU computes static convolutions
    with torch.no_grad():
        drawn, expected = (one.generate(TEXTS, [1, 2], DRAWN).astype(float) for one in (loaded, plain))
    assert 0 < np.abs(drawn - expected).mean() < 20  # of 255: random weights
    held = {name: type(module).__name__ for name, module in loaded.modules().items()}
    assert held.keys() == sizes.keys()


def test_what_is_loaded_computes_what_was_quantized(made, folders):
    out, _ = made
    settings = settings_of("flux", folders["flux"])
    loaded = load_pipeline(out / "whole", simulate=True).pipeline
    part = components.load(load_family("diffusers"), settings, folders["flux"], "text_encoder_2")
    network = part.load_network(settings, folders["flux"])
    allocation = manifest.read_json(out / "text_encoder_2/allocation.json")
    method = manifest.read_json(out / "text_encoder_2/manifest.json")["settings"]
    sequential.quantize(network, part, allocation, method)
    tokens = torch.arange(4, 10)[None]
    with torch.no_grad():
        found, expected = (one(tokens)[0] for one in (loaded.text_encoder_2, network))
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_weights_of_another_entry_are_not_joined(made, tmp_path):
    out, method = made
    other = json.loads(json.dumps(method))
    other["components"]["vae"]["weights"]["bits"] = 4
    parts = [out / name / "manifest.json" for name in method["components"]]
    for asked, given in ((other, parts), (method, parts[:2])):
        with pytest.raises(DataError, match="quantizes its components otherwise"):
            share_weights.share(out / "float/manifest.json", "whole", asked, tmp_path / "manifest.json", given)
    with pytest.raises(DataError, match=r"has no component 'text_encoder_3' with layers .*: text_encoder, text_"):
        component_files.described(manifest.read_json(out / "model.json"), "text_encoder_3")


def test_a_part_that_is_damaged_is_refused(made, tmp_path):
    out, _ = made
    shutil.copytree(out / "whole", tmp_path / "whole")
    weights = tmp_path / "whole/vae/weights.safetensors"
    weights.unlink()
    weights.write_bytes(b"0" * 100)
    with pytest.raises(DataError, match=r"vae.*weights\.safetensors"):
        load_pipeline(tmp_path / "whole")


def test_an_autoencoder_that_overflows_is_named(made):
    loaded = load_pipeline(made[0] / "float")
    draw = partial(loaded.generate, TEXTS[:1], [1], DRAWN)
    decode = type(loaded.pipeline.vae).decode
    with torch.no_grad():
        loaded.pipeline.vae.decoder.conv_out.bias += torch.inf  # what sums above 65504 are in float16
        with pytest.raises(DegenerateImages, match=r"the autoencoder \(AutoencoderKL\) overflows in float32: finite"):
            draw()
        loaded.pipeline.transformer.proj_out.bias += torch.nan
        with pytest.raises(DegenerateImages, match="image 0 has NaN or infinite values"):
            draw()
    assert loaded.pipeline.vae.decode.__func__ is decode


# Tables


def test_sizes_include_what_any_method_quantizes(made):
    out, _ = made
    measurement = {"status": "ok", "memory": {"components_mb": {"vae": 0.5}}, "phases": {"decode": {"latency_s": 2.0}}}
    cells = [
        Cell("m", name, "s", manifest.read_json(out / name / "manifest.json"), {"status": "ok"}, measurement)
        for name in ("float", "whole")
    ]
    compared = component_table.compared(cells)
    plain, whole = (component_files.size_bytes(cell.checkpoint, compared) for cell in cells)
    assert plain == sum(cells[0].checkpoint["component_bytes"].values()) > whole
    table = component_table.components_table(cells).set_index(["method", "component"])
    assert len(table) == 2 * 4 and list(table.loc["whole"]["quantized"]) == [False, True, True, True]
    vae = table.loc["whole", "vae"]
    assert (vae["memory_mb"], vae["phase"], vae["phase_s"], vae["activation_bits"] < 32) == (0.5, "decode", 2.0, True)
    assert table.loc["whole"]["size_mb"].sum() == pytest.approx(whole / 1e6)
    assert len(component_table.shown(component_table.components_table(cells))) == 8
    assert len(component_table.shown(component_table.components_table(cells[:1]))) == 0
