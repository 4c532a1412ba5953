"""Convolutions as matrix products, and block-wise walks through UNets: skip connections, groups, the first token."""

import copy

import pytest
import torch

from quantwatt import registry
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import complete_method
from quantwatt.formats import convolution
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format
from quantwatt.inference import checkpoint
from quantwatt.models import (
    architecture,
    splits,
)
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from quantwatt.quantize.observers import FirstToken, Observers
from quantwatt.quantize.solvers import load_solver
from quantwatt.quantize.streams import Block, BlockActivations

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "padding": "same", "dilation": (2, 1)},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 2, "padding": "valid", "stride": (1, 2)},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "stride": 2},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "groups": 2},
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(geometry, bias=True):
    torch.manual_seed(0)
    return torch.nn.Conv2d(8, 16, bias=bias, **geometry).requires_grad_(False)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_is_the_product_of_its_patches(geometry):
    layer, inputs = layer_of(geometry), random(3, 8, 9, 10)
    found, weight = Convolution.of(layer), layer.weight.flatten(1)
    assert torch.equal(found.product(inputs, weight, layer.bias), layer(inputs))
    rows = weight.chunk(found.groups)
    products = [part @ own.T for part, own in zip(found.patches(inputs), rows, strict=True)]  # [positions, rows]
    outputs = layer(inputs)
    expected = (torch.cat(products, dim=1) + layer.bias).reshape(3, *outputs.shape[2:], 16).permute(0, 3, 1, 2)
    assert torch.allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_manifest_keeps_the_geometry(geometry):
    described = convolution.describe(layer_of(geometry))
    assert described["in_features"] * described["out_features"] == layer_of(geometry).weight.numel()
    assert Convolution.from_settings(described) == Convolution.of(layer_of(geometry))
    linear = convolution.describe(torch.nn.Linear(3, 5))
    assert linear == {"in_features": 3, "out_features": 5} and Convolution.from_settings(linear) is None


def test_one_grid_per_image_where_a_linear_layer_has_one_per_token():
    from quantwatt.formats.activations import IntegerActivations

    inputs = random(2, 8, 4, 4)
    inputs[1] *= 100
    activations = IntegerActivations(4, "token")
    found = convolution.rounded(inputs, activations, None, Convolution.of(layer_of({"kernel_size": 1})))
    for image, own in zip(inputs, found, strict=True):
        assert torch.equal(own, activations.fake_quantize(image.reshape(1, -1)).reshape(image.shape))
        assert len(own.unique()) <= 15


class OneLayer(type(load_family("diffusers"))):
    """Blocks and layers as they are found; each layer is a stage."""

    def segments(self, denoiser):
        return {}


class Sequential(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.first, self.second = layers

    def forward(self, sample):
        return self.second(torch.nn.functional.silu(self.first(sample)))


def method_of(name="gptq", bits=4, **entry):
    solver = {"name": name} | ({"held_out": 0} if name in ("gptq", "qronos", "brecq") else {})
    entry = {"solver": solver, "weights": {"format": "integer", "bits": bits}, **entry}
    return complete_method(entry, "test", "method")


def walk(denoiser, family, method, samples, batch=4):
    layers = {name: convolution.describe(denoiser.get_submodule(name)) for name in family.quantizable(denoiser)}
    for name, channels in family.skips(denoiser).items():
        layers[name]["skips"] = list(channels)
    for name in family.first_token(denoiser):
        layers[name]["first_token"] = True
    allocation = allocate(layers, method, "method")
    splits.split(denoiser, splits.of_layers(layers, allocation))
    return sequential.quantize(denoiser, family, allocation, method, samples, batch)


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_every_group_of_a_convolution_is_solved_by_its_own_inputs(solver):
    torch.manual_seed(0)
    grouped = torch.nn.Conv2d(8, 12, 3, padding=1, groups=4)
    denoiser = Sequential(grouped, torch.nn.Conv2d(12, 4, 3, stride=2)).requires_grad_(False)
    samples = {"sample": random(8, 8, 7, 7)}
    method = method_of(solver, bits=3)
    states, reports = walk(copy.deepcopy(denoiser), OneLayer(), method, samples)
    weight_format = load_format(method["weights"])
    chosen = load_solver({**method["solver"], "act_order": False})
    patches = Convolution.of(grouped).patches(samples["sample"])
    codes = []
    for part, weight in zip(patches, grouped.weight.flatten(1).chunk(4), strict=True):
        statistics = Observers.new(chosen.NEEDS, weight.shape[1])
        for batch in part.chunk(2):  # two batches of four samples
            statistics.observe(batch, batch)
        codes.append(chosen.solve(weight, weight_format, statistics).weight.state(weight_format)["codes"])
    assert torch.equal(states["first"]["codes"], torch.cat(codes))
    assert reports["first"]["groups"] == 4 and reports["first"]["in_features"] == 18
    if solver == "gptq":
        assert reports["first"]["relative_error"] < reports["first"]["error_before"]


def test_what_is_reported_is_the_error_of_the_convolutions_output():
    torch.manual_seed(0)
    denoiser = Sequential(torch.nn.Conv2d(8, 12, 3, padding=1, groups=2), torch.nn.Conv2d(12, 4, 3))
    denoiser.requires_grad_(False)
    plain, samples = copy.deepcopy(denoiser), {"sample": random(8, 8, 7, 7)}
    _, reports = walk(denoiser, OneLayer(), method_of(bits=3), samples)
    outputs = plain.first._conv_forward(samples["sample"], plain.first.weight, None)
    found = denoiser.first(samples["sample"]) - plain.first.bias[:, None, None]
    expected = ((found - outputs).norm() / outputs.norm()).item()
    assert reports["first"]["relative_error"] == pytest.approx(expected, rel=1e-3)


def unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), norm_num_groups=4, attention_head_dim=8,
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), num_class_embeds=10, attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    ).eval().requires_grad_(False)  # fmt: skip


def unet_samples(count=8):
    return {"sample": random(count, 1, 8, 8), "timestep": torch.linspace(10, 900, count),
            "class_labels": torch.arange(count) % 10}  # fmt: skip


class UNet(OneLayer):
    def skips(self, denoiser):
        return {"up_blocks.0.resnets.0.conv1": (16, 16), "up_blocks.0.resnets.0.conv_shortcut": (16, 16)}


def inputs_of(denoiser, names, samples):
    seen = {name: [] for name in names}
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].clone())
        )
        for name in names
    ]
    for first in range(0, len(samples["sample"]), 4):
        denoiser(**{name: part[first : first + 4] for name, part in samples.items()})
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_a_suspended_pass_of_a_unet_meets_what_a_plain_one_does():
    denoiser, samples = unet(), unet_samples()
    alone = [name for name in architecture.blocks(denoiser) if name in architecture.quantizable(denoiser)]
    plain = inputs_of(denoiser, alone, samples)
    streams, order = BlockActivations(denoiser, UNet(), samples, 4, paired=True), []
    while name := streams.block:
        for batches in (streams.batches, streams.float_batches):
            if name in alone:
                met = torch.cat([next(iter(inputs.values())) for inputs in batches])
                assert torch.equal(met, plain[name])
        block = Block(denoiser, name, (), "cpu")
        streams.advance(block.module, block.module)
        block.put_back()
        order.append(name)
    assert sorted(order) == sorted(architecture.blocks(denoiser)) and len(set(order)) == len(order)
    assert order.index("mid_block.resnets.0") < order.index("up_blocks.0.resnets.0")  # as it is run
    assert not [module for module in denoiser.modules() if "forward" in vars(module)]


METHODS = {
    "rtn": {},
    "gptq": {},
    "gptq static": {"activations": {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}},
    "gptq split": {"transforms": [{"name": "split-skips"}], "activations": {"bits": 8}},
    "qronos": {"activations": {"bits": 8}},
    "hqq": {"weights": {"format": "integer", "bits": 4, "granularity": "channel", "zero_point": "float"}},
    "brecq": {"solver": {"name": "brecq", "iterations": 4, "activation_iterations": 2, "batch_size": 4},
              "activations": {"bits": 8, "granularity": "tensor", "dynamic": False}},
    "rtn smoothed": {"transforms": [{"name": "smoothing"}, {"name": "low-rank", "rank": 2}]},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_solver_walks_a_unet_and_its_checkpoint_computes_the_same(name, tmp_path, monkeypatch):
    denoiser, samples = unet(), unet_samples()
    method = method_of(name.split()[0], **METHODS[name])
    states, reports = walk(denoiser, UNet(), method, samples)
    whole = {layer.rpartition(".")[0] if layer[-2:] in (".0", ".1") and "conv" in layer else layer for layer in states}
    assert whole == set(architecture.quantizable(unet()))
    assert ("up_blocks.0.resnets.0.conv1.1" in states) == ("split" in name)
    outputs = denoiser(**samples).sample
    assert outputs.isfinite().all() and not torch.equal(outputs, unet()(**samples).sample)

    details = {"status": "ok", "reason": None, "model_settings": {"family": "unet", "dtype": "float32"}}
    checkpoint_files.save(tmp_path, denoiser, states, reports, details)
    monkeypatch.setattr(UNet, "meta_network", lambda self, location: meta_unet(location), raising=False)
    path = tmp_path / "manifest.json"
    loaded = checkpoint._load_network(UNet(), path, checkpoint.manifest.read_json(path), None, "cpu", simulate=True)
    assert torch.equal(loaded(**samples).sample, outputs)


def meta_unet(location):
    with torch.device("meta"):
        return type(unet()).from_config(unet().config).eval()


def test_layers_see_their_inputs_after_all_quantization_before_them(monkeypatch):
    calls, solver = [], registry.load("solvers", "gptq").Solver
    real = solver.solve

    def solve(self, weight, weight_format, statistics):
        calls.append(statistics.hessian.value)
        return real(self, weight, weight_format, statistics)

    monkeypatch.setattr(solver, "solve", solve)
    denoiser, samples = unet(), unet_samples()
    walk(denoiser, UNet(), method_of(bits=2), samples)
    last = inputs_of(denoiser, ["conv_out"], samples)["conv_out"]
    (patches,) = Convolution.of(unet().conv_out).patches(last)
    assert torch.allclose(calls[-1], 2 * patches.T @ patches / len(patches), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_split_convolution_adds_what_its_parts_give(mode):
    layer = layer_of({"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": mode})
    parent = torch.nn.ModuleDict({"conv": copy.deepcopy(layer)})
    splits.split(parent, {"conv": [5, 3]})
    inputs = random(2, 8, 6, 6)
    assert torch.allclose(parent["conv"](inputs), layer(inputs), atol=1e-5)
    assert parent["conv"].get_submodule("1").bias is None


class CrossAttention(OneLayer):
    def first_token(self, denoiser):
        return [name for name in architecture.quantizable(denoiser) if name.endswith(("attn2.to_k", "attn2.to_v"))]


def conditioned():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, transformer_layers_per_block=(1, 1), attention_head_dim=8, use_linear_projection=True,
    ).eval().requires_grad_(False)  # fmt: skip


def conditioned_samples(count=4):
    text = random(count, 6, 12, seed=1)
    text[:, 0] = 100 * random(12, seed=2)  # the same for all prompts, and larger by far
    return {"sample": random(count, 4, 8, 8), "timestep": torch.full((count,), 500.0), "encoder_hidden_states": text}


@pytest.mark.parametrize("solver", ["rtn", "gptq", "qronos", "brecq"])
def test_the_first_token_is_computed_in_float_and_left_out_of_the_grid(solver):
    activations = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    quick = {"name": solver, **({"iterations": 2, "activation_iterations": 2} if solver == "brecq" else {})}
    entry = {"solver": quick, "activations": activations}
    samples, scales = conditioned_samples(), {}
    for transforms in ([], [{"name": "bos"}]):
        denoiser = conditioned()
        method = method_of(solver, bits=8, transforms=transforms, **entry)
        states, reports = walk(denoiser, CrossAttention(), method, samples)
        name = CrossAttention().first_token(conditioned())[0]
        scales[len(transforms)] = states[name]["activation_scale"].item()
        text = samples["encoder_hidden_states"]
        outputs, truth = denoiser.get_submodule(name)(text), conditioned().get_submodule(name)(text)
        assert outputs.shape == truth.shape
        if transforms:
            assert torch.allclose(outputs[:, 0], truth[:, 0], rtol=1e-4, atol=1e-4)
            assert (outputs - truth)[:, 1:].norm() < 0.05 * truth[:, 1:].norm()
            assert "first_output" in reports[name]["parts"] and reports[name]["first_token_deviation"] == 0
        elif solver != "brecq":
            assert (outputs - truth)[:, 1:].norm() > 0.05 * truth[:, 1:].norm()
    assert scales[1] < scales[0] / 10


@pytest.mark.parametrize("order", [("bos", "hadamard"), ("hadamard", "bos")])
def test_a_rotation_leaves_convolutions_and_the_first_token(order, capsys):
    activations = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    transforms, samples, denoiser = [{"name": name} for name in order], conditioned_samples(), conditioned()
    method = method_of("rtn", bits=8, transforms=transforms, activations=activations)
    states, reports = walk(denoiser, CrossAttention(), method, samples)
    geometries = {name: "kernel_size" in report for name, report in reports.items()}
    assert {name for name, state in states.items() if "rotation" not in state} == {
        n for n, c in geometries.items() if c
    }
    counts = f"hadamard leaves {sum(geometries.values())} of {len(geometries)} layers as they are (convolutions: "
    assert counts in capsys.readouterr().err
    name, text = CrossAttention().first_token(conditioned())[0], samples["encoder_hidden_states"]
    outputs, truth = denoiser.get_submodule(name)(text), conditioned().get_submodule(name)(text)
    assert torch.allclose(outputs[:, 0], truth[:, 0], rtol=1e-4, atol=1e-4)
    assert (outputs - truth)[:, 1:].norm() < 0.05 * truth[:, 1:].norm()
    assert (denoiser(**samples).sample - conditioned()(**samples).sample).norm() < 0.1 * truth.norm()


def test_a_first_token_that_differs_between_prompts_is_refused():
    method = method_of("rtn", transforms=[{"name": "bos"}])
    samples = conditioned_samples()
    samples["encoder_hidden_states"][2, 0] *= 1.01
    _, reports = walk(conditioned(), CrossAttention(), method, samples)
    name = CrossAttention().first_token(conditioned())[0]
    assert 0.005 < reports[name]["first_token_deviation"] <= 0.01 * (1 + 1e-4)
    samples["encoder_hidden_states"][2, 0] *= 1.1
    with pytest.raises(DataError, match=r"first token differs between prompts, by \d+\.\d%"):
        walk(conditioned(), CrossAttention(), method, samples)
    with pytest.raises(DataError, match="'bos' has no layer"):
        walk(unet(), UNet(), method_of("rtn", transforms=[{"name": "bos"}]), unet_samples())


def test_a_huge_column_hides_no_others_that_differ():
    tokens = random(3, 1, 1280)
    tokens[:, :, 7] = 823
    with pytest.raises(DataError, match="differs between prompts"):
        FirstToken(1280).see(tokens)
    tokens[:] = tokens[:1]
    found = FirstToken(1280)
    found.see(tokens * (1 + 2**-8 * random(*tokens.shape, seed=1)))  # as bfloat16 rounds
    assert 0.003 < found.deviation < 0.01


class Twice(torch.nn.Module):
    """One layer called twice in a row, then another."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, sample):
        return self.second(self.first(self.first(sample)))


def test_a_layer_that_is_called_again_is_gone_through():
    torch.manual_seed(0)
    denoiser, samples = Twice().requires_grad_(False), {"sample": random(8, 6)}
    states, _ = walk(denoiser, OneLayer(), method_of("gptq"), samples)
    assert set(states) == {"first", "second"} and denoiser(**samples).isfinite().all()


def test_a_static_grid_is_found_without_patches(monkeypatch):
    def unfold(*args):
        raise AssertionError("patches are many times the input")

    torch.manual_seed(0)
    layers = torch.nn.Conv2d(8, 12, 3, padding=1, groups=4), torch.nn.Conv2d(12, 4, 3, stride=2)
    denoiser, samples = Sequential(*layers).requires_grad_(False), {"sample": random(8, 8, 7, 7)}
    denoiser.second.weight.zero_()
    activations = {"bits": 8, "granularity": "tensor", "dynamic": False}
    monkeypatch.setattr(Convolution, "patches", unfold)
    states, _ = walk(denoiser, OneLayer(), method_of("rtn", bits=8, activations=activations), samples, batch=8)
    assert states["first"]["activation_scale"] == samples["sample"].abs().amax() / 127


def test_low_rank_needs_nothing_of_convolutions():
    plan = sequential.SequentialQuantizer(
        OneLayer(), {}, method_of("rtn", transforms=[{"name": "low-rank"}]), "cpu", None
    )
    assert plan.prepared == {"hessian"}
    geometry = Convolution.of(layer_of({"kernel_size": 3}))
    given = {}, {}, {}, geometry, None, None, torch.zeros(16, 72), torch.zeros(16, 72), torch.float32
    assert not vars(sequential.LayerPlan(*given).statistics(plan.prepared, raw=True)[0])
    assert vars(sequential.LayerPlan(*given).statistics({"hessian"}, raw=False)[0])


def test_overrides_change_the_formats_of_some_layers():
    overrides = {
        "conv_*": {"activations": {"bits": 6}, "weights": {"bits": 4}},
        "conv_in": {"weights": {"bits": 8}},
        "*.conv1": {"activations": None},
    }
    method = method_of("rtn", bits=2, activations={"bits": 8}, allocation={"name": "uniform", "overrides": overrides})
    states, reports = walk(unet(), UNet(), method, unet_samples())
    bits = {name: (report["weights"]["bits"], report["activation_bits"]) for name, report in reports.items()}
    assert bits["conv_in"] == (8, 6) and bits["conv_out"] == (4, 6)
    assert bits["mid_block.resnets.0.conv1"] == (2, 32) and bits["mid_block.resnets.0.conv2"] == (2, 8)
    for name in bits:
        assert states[name]["codes"].shape[1] == -(-reports[name]["in_features"] * bits[name][0] // 8)
