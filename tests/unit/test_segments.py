"""Modulation layers in chunks: equal outputs, one grid per chunk, and stages in the order of the computation."""

import copy

import pytest
import torch

import model as model_rule
from quantwatt.allocate.allocation import allocate, taken_apart
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.formats.quantized_weight import load_format
from quantwatt.models import splits
from quantwatt.models.families import load_family
from quantwatt.quantize.solvers import rtn
from quantwatt.quantize.transforms import segments as transform

EXPERIMENT = experiment.load_experiment("embedded")
LOCATION = str(experiment.ROOT / EXPERIMENT["models"]["tiny-sd3"]["path"])
SEGMENTS = [{"name": "segments"}]
NF4 = {**EXPERIMENT["methods"]["nf4"], "transforms": SEGMENTS}
BLOCK = "transformer_blocks.0"


def dual_attention():
    """The architecture of 3.5 Medium in small: two blocks with a second attention, a last one without text output."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    ).eval()  # fmt: skip


def run(denoiser):
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 24, generator=generator),
        "pooled_projections": torch.randn(2, 24, generator=generator),
        "timestep": torch.tensor([900.0, 100.0]),
    }
    with torch.no_grad():
        return denoiser(**inputs, return_dict=False)[0]


@pytest.fixture(scope="module")
def family():
    return load_family("sd3")


@pytest.fixture
def denoiser():
    return dual_attention()


@pytest.fixture
def layers(family, denoiser):
    """The manifest's entries."""
    chunks = family.segments(denoiser)
    described = {}
    for name in family.quantizable(denoiser):
        layer = denoiser.get_submodule(name)
        described[name] = {"in_features": layer.in_features, "out_features": layer.out_features}
        described[name] |= {"segments": chunks[name]} if name in chunks else {}
    return described


def names_of_chunks(name, count):
    return {f"{name}.{index}" for index in range(count)}


def test_the_outputs_are_exactly_the_whole_layers():
    """With whole numbers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.Linear(32, 6 * 16)
    with torch.no_grad():
        whole.weight.copy_(torch.randint(-9, 10, whole.weight.shape, generator=generator))
        whole.bias.copy_(torch.randint(-9, 10, whole.bias.shape, generator=generator))
    parent = torch.nn.ModuleDict({"linear": copy.deepcopy(whole)})
    splits.split(parent, {"linear": 6})
    assert isinstance(parent["linear"], splits.SegmentedLinear)
    inputs = torch.randint(-9, 10, (2, 5, 32), generator=generator).float()
    assert torch.equal(parent["linear"](inputs), whole(inputs))
    third = parent["linear"].get_submodule("2")
    assert torch.equal(third.weight, whole.weight[32:48]) and torch.equal(third.bias, whole.bias[32:48])
    storages = {layer.weight.untyped_storage().data_ptr() for layer in parent["linear"].children()}
    assert len(storages) == 6  # safetensors refuses tensors that share memory


def test_a_layer_that_does_not_divide_is_refused():
    with pytest.raises(RuntimeError):
        splits.split(torch.nn.ModuleDict({"linear": torch.nn.Linear(8, 10)}), {"linear": 4})


def test_one_scale_per_chunk_saves_the_small_ones():
    """Chunks whose weights differ 100 times in magnitude: a scale for all rounds the smaller ones to zero."""
    generator = torch.Generator().manual_seed(0)
    magnitude = torch.tensor([1.0, 0.01, 1.0, 0.01, 0.01, 1.0]).repeat_interleave(64)
    parent = torch.nn.ModuleDict({"linear": torch.nn.Linear(64, 6 * 64, bias=False)})
    weight = torch.randn(6 * 64, 64, generator=generator) * magnitude[:, None]
    parent["linear"].weight = torch.nn.Parameter(weight, requires_grad=False)
    settings = {"format": "integer", "bits": 4, "granularity": "tensor", "group_size": None, "symmetric": True}
    weight_format = load_format(settings)

    def errors(stored):
        """Relative error of each chunk's output."""
        inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
        difference, truth = (part.unflatten(1, (6, 64)) for part in (inputs @ (stored - weight).T, inputs @ weight.T))
        return difference.norm(dim=(0, 2)) / truth.norm(dim=(0, 2))

    def rounded(values):
        return rtn.Solver().solve(values, weight_format).weight.dequantize(weight_format)

    whole = errors(rounded(weight))
    splits.split(parent, {"linear": 6})
    apart = errors(torch.cat([rounded(layer.weight) for layer in parent["linear"].children()]))
    small = magnitude[::64] < 1
    assert (whole[small] == 1).all()  # nothing is left of them
    assert (apart < 0.3).all() and apart.mean() < 0.5 * whole.mean()
    assert (apart[~small] <= 1.01 * whole[~small]).all()


def test_a_denoiser_in_chunks_computes_the_same(family, denoiser, layers):
    before = run(denoiser)
    splits.split(denoiser, family.segments(denoiser))
    assert torch.allclose(run(denoiser), before, atol=1e-5)
    assert set(family.quantizable(denoiser)) == set(taken_apart(layers, ["segments"]))
    assert family.segments(denoiser) == family.segments(dual_attention())


def test_segments_are_read_off_the_modules(family, denoiser):
    found = family.segments(denoiser)
    assert found == {
        "transformer_blocks.0.norm1.linear": 9,
        "transformer_blocks.0.norm1_context.linear": 6,
        "transformer_blocks.1.norm1.linear": 9,
        "transformer_blocks.1.norm1_context.linear": 6,
        "transformer_blocks.2.norm1.linear": 6,
        "transformer_blocks.2.norm1_context.linear": 2,
    }
    for name, count in found.items():
        assert denoiser.get_submodule(name).out_features == count * 32  # the width: shifts, scales, gates


def test_the_manifest_says_how_many(family):
    layers = model_rule.describe(family, LOCATION, "bfloat16")["layers"]
    chunks = family.segments(family.meta_denoiser(LOCATION))
    assert {name: layer["segments"] for name, layer in layers.items() if "segments" in layer} == chunks
    assert 0 < len(chunks) < len(layers)


def test_allocation_names_the_chunks_in_order(layers):
    whole = allocate(layers, {**NF4, "transforms": []}, "m")
    assert set(whole) == set(layers)
    names = list(allocate(layers, NF4, "m"))
    place = names.index(f"{BLOCK}.norm1.linear.0")
    assert names[place : place + 9] == [f"{BLOCK}.norm1.linear.{index}" for index in range(9)]
    assert f"{BLOCK}.norm1.linear" not in names and f"{BLOCK}.attn.to_q" in names
    chunk = taken_apart(layers, ["segments"])[f"{BLOCK}.norm1.linear.8"]
    assert (chunk["in_features"], chunk["out_features"]) == (32, 32)


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("*.norm1.linear", [("0.norm1", 9), ("1.norm1", 9), ("2.norm1", 6)]),
        (f"{BLOCK}.norm1_context.linear", [("0.norm1_context", 6)]),
        ("*.norm1.linear.*", [("0.norm1", 9), ("1.norm1", 9), ("2.norm1", 6)]),
    ],
)
def test_a_pattern_excludes_all_chunks_of_a_layer(layers, pattern, gone):
    method = {**NF4, "allocation": {"name": "uniform", "exclude": [pattern], "overrides": {}}}
    excluded = set(taken_apart(layers, ["segments"])) - set(allocate(layers, method, "m"))
    assert excluded == {
        chunk for name, count in gone for chunk in names_of_chunks(f"transformer_blocks.{name}.linear", count)
    }


def test_a_pattern_may_name_one_chunk(layers):
    method = {**NF4, "allocation": {"name": "uniform", "exclude": ["*.norm1_context.linear.1"], "overrides": {}}}
    excluded = set(taken_apart(layers, ["segments"])) - set(allocate(layers, method, "m"))
    assert excluded == {f"transformer_blocks.{index}.norm1_context.linear.1" for index in range(3)}
    method["transforms"] = []
    with pytest.raises(DataError, match="matches no layer"):
        allocate(layers, method, "m")


@pytest.mark.parametrize("exclude", [[], ["*.norm1.linear"], ["*.norm1.linear.8", "*.norm1_context.linear.0"]])
def test_a_saved_denoiser_is_restored_with_its_chunks(family, denoiser, layers, exclude):
    allocation = allocate(layers, {**NF4, "allocation": {"name": "uniform", "exclude": exclude, "overrides": {}}}, "m")
    chunks = splits.of_layers(layers, allocation)
    assert ("transformer_blocks.0.norm1.linear" in chunks) == (exclude != ["*.norm1.linear"])
    splits.split(denoiser, chunks)
    state = denoiser.state_dict()

    with torch.device("meta"):
        loaded = type(denoiser).from_config(denoiser.config).eval()
    splits.restore(loaded, {name: {"out_features": denoiser.get_submodule(name).out_features} for name in allocation})
    for name in allocation:
        assert loaded.get_submodule(name).weight.is_meta
    loaded.load_state_dict(state, assign=True)
    assert torch.equal(run(loaded), run(denoiser))


def test_the_transform_itself_leaves_the_weight():
    weight = torch.randn(4, 8)
    found = transform.Transform().apply(weight, None, None, None)
    assert found.weight is weight and found.input_factor is found.down is found.up is None


@pytest.mark.parametrize("model", ["tiny-sd3", "dual-attention"])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_stages_cover_every_layer_once(family, denoiser, model, in_chunks):
    denoiser = denoiser if model == "dual-attention" else family.meta_denoiser(LOCATION)
    if in_chunks:
        denoiser = denoiser.to_empty(device="cpu")
        splits.split(denoiser, family.segments(denoiser))
    names = family.quantizable(denoiser)
    for block in family.blocks(denoiser):
        own = [name.removeprefix(f"{block}.") for name in names if name.startswith(f"{block}.")]
        for block_names in (own, [f"{block}.{name}" for name in own]):
            stages = family.stages(block_names)
            assert sorted(name for stage in stages for name in stage) == sorted(block_names)
            assert len(stages) == 5 and all(stages)


def test_an_unknown_layer_is_refused(family):
    with pytest.raises(ValueError, match="attn.to_new"):
        family.stages(["attn.to_q", "attn.to_new"])


def inputs_of_layers(denoiser, names):
    seen = {}
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0].clone())
        )
        for name in names
    ]
    run(denoiser)
    for handle in handles:
        handle.remove()
    return seen


def test_each_stage_reads_what_the_stages_before_it_computed(family, denoiser):
    """Change the weights of one stage: inputs up to it stay, those of the next change, in a block of every kind."""
    for block in family.blocks(denoiser):
        names = [name for name in family.quantizable(denoiser) if name.startswith(f"{block}.")]
        stages = family.stages(names)
        before = inputs_of_layers(denoiser, names)
        for index, stage in enumerate(stages[:-1]):
            changed = copy.deepcopy(denoiser)
            for name in stage:
                with torch.no_grad():
                    changed.get_submodule(name).weight.mul_(1.5)
            after = inputs_of_layers(changed, names)
            for name in [name for earlier in stages[: index + 1] for name in earlier]:
                assert torch.equal(before[name], after[name]), name
            for name in stages[index + 1]:
                assert not torch.equal(before[name], after[name]), name
