"""BRECQ against brute force, finite differences and rounding to nearest on the same block."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch

from quantwatt.formats.activations import ActivationFormat, IntegerActivations
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference.linear import SimulatedLinear
from quantwatt.models.families import load_family
from quantwatt.quantize.sequential import LayerPlan
from quantwatt.quantize.solvers import brecq
from quantwatt.quantize.solvers.adaround import RoundedLinear, inverse_rectified_sigmoid, rectified_sigmoid

SCHEMA = Path(__file__).parents[2] / "resources/schemas/solvers/brecq.schema.json"
PAPER = {key: entry.get("default") for key, entry in json.loads(SCHEMA.read_text())["properties"].items()}
SD3 = load_family("sd3")
QUICK = {**PAPER, "iterations": 300, "learning_rate": 0.03, "batch_size": 8, "activation_iterations": 200}


def Plan(weight, weight_format, activation_format=None, bias=None, geometry=None, **parts):
    """A LayerPlan of one layer in float32."""
    names, weight = {"layer": slice(0, len(weight))}, weight.flatten(1)
    given = {}, geometry, weight_format, activation_format, weight, weight, torch.float32
    return LayerPlan(names, {"layer": bias}, *given, **parts)


def weights(bits):
    if bits == "nf4":
        return load_format({"format": "nf4", "group_size": 16})
    return load_format({"format": "integer", "bits": bits, "granularity": "channel", "group_size": None})


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Single(torch.nn.Module):
    """A block of one layer."""

    def __init__(self, weight):
        super().__init__()
        self.layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight = torch.nn.Parameter(weight)

    def forward(self, hidden_states):
        return self.layer(hidden_states)


@pytest.fixture(scope="module")
def joint():
    """A block of Stable Diffusion 3 in small: (block, arguments of 24 samples in unequal batches, its outputs)."""
    from diffusers.models.attention import JointTransformerBlock

    torch.manual_seed(0)
    block = JointTransformerBlock(32, 2, 16, qk_norm="rms_norm").eval()
    batches, mixing = [], random(32, 32, seed=9) / 32**0.5
    for first, count in ((0, 10), (10, 14)):
        batches.append(
            {
                "hidden_states": random(count, 8, 32, seed=first) @ mixing,
                "encoder_hidden_states": random(count, 3, 32, seed=first + 1) @ mixing,
                "temb": random(count, 32, seed=first + 2),
                "joint_attention_kwargs": None,
            }
        )
    with torch.no_grad():
        return block, batches, [block(**batch) for batch in batches]


def plans_of(block, weight_format, activation_format=None):
    return {
        name: Plan(layer.weight.detach(), weight_format, activation_format, layer.bias)
        for name, layer in block.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def fixed(block, plans, quantized, activations=None):
    """The block with its layers in the form that a checkpoint computes with."""
    block = copy.deepcopy(block)
    for name, weight in quantized.items():
        plan = plans[name]
        block.set_submodule(name, SimulatedLinear.build(weight, plan.weight_format, activations, plan.bias, plan.dtype))
    return block


@torch.no_grad()
def distance(block, batches, targets):
    """Squared distance of all outputs per token."""
    squares = tokens = 0
    for batch, target in zip(batches, targets, strict=True):
        for found, true in zip(block(**batch), target, strict=True):
            squares += (found - true).square().sum().item()
            tokens += true[..., 0].numel()
    return squares / tokens


def nearest(plans):
    return {name: quantize_to_nearest(plan.weight, plan.weight_format) for name, plan in plans.items()}


@pytest.mark.parametrize("bits", [2, 4, "nf4"])
def test_a_block_comes_nearer_than_by_rounding_and_weights_stay_between_their_neighbours(joint, bits):
    block, batches, targets = joint
    before = copy.deepcopy(block.state_dict())
    plans = plans_of(block, weights(bits))
    solutions = brecq.Solver.from_settings(QUICK).solve_block(block, plans, batches, targets, SD3)
    found = {name: solution.weight for name, solution in solutions.items()}
    assert found.keys() == plans.keys() and not [s for s in solutions.values() if s.fallback]
    rounded = distance(fixed(block, plans, nearest(plans)), batches, targets)
    assert distance(fixed(block, plans, found), batches, targets) < 0.6 * rounded
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
    assert type(block.attn.to_q) is torch.nn.Linear

    moved = 0
    for name, weight in found.items():
        value, original = weight.dequantize(plans[name].weight_format), plans[name].weight
        # All values of every weight's grid, [rows, columns, codes], and those next to the weight.
        every = torch.stack(
            [
                type(weight)(torch.full_like(weight.codes, code), weight.scale, weight.zero).dequantize(
                    plans[name].weight_format
                )
                for code in range(2 ** plans[name].weight_format.bits)
            ],
            dim=-1,
        )
        below = every.masked_fill(every > original[..., None] + 1e-6, -torch.inf).amax(dim=-1)
        above = every.masked_fill(every < original[..., None] - 1e-6, torch.inf).amin(dim=-1)
        assert (torch.isclose(value, below, atol=1e-5) | torch.isclose(value, above, atol=1e-5)).all()
        moved += (weight.codes != nearest(plans)[name].codes).sum().item()
    assert moved > 0.02 * sum(plan.weight.numel() for plan in plans.values())


def test_the_rounding_of_rows_is_close_to_the_best_of_all_roundings():
    """Rows of 8 weights, with 2^8 roundings each, on correlated inputs."""
    weight = random(64, 8, seed=0)
    inputs = random(64, 4, 3, seed=50) @ random(3, 8, seed=1) + random(64, 4, 8, seed=90)
    energy = inputs.reshape(-1, 8).T @ inputs.reshape(-1, 8)
    plan = Plan(weight, weights(3))
    grid = quantize_to_nearest(weight, plan.weight_format)
    below = torch.floor(weight / grid.scale) + grid.zero
    codes = (below[:, None] + torch.tensor(list(itertools.product((0, 1), repeat=8)))).clamp(0, 7)  # [64, 256, 8]
    errors = (codes - grid.zero[..., None]) * grid.scale[..., None] - weight[:, None]
    best = ((errors @ energy) * errors).sum(dim=-1).amin(dim=1)

    settings = {**QUICK, "iterations": 800, "batch_size": 32, "regularizer": 1.0}
    block, batches = Single(weight), [{"hidden_states": inputs}]
    solver, targets = brecq.Solver.from_settings(settings), [inputs @ weight.T]
    found = solver.solve_block(block, {"layer": plan}, batches, targets, SD3)["layer"].weight

    def loss(quantized):
        error = quantized.dequantize(plan.weight_format) - weight
        return ((error @ energy) * error).sum(dim=1)

    assert (loss(found) > best * (1 - 1e-4)).all()  # no rounding is better than the best: it stays on the neighbours
    assert loss(found).sum() < 1.1 * best.sum() < 0.7 * loss(grid).sum()
    assert (loss(found) < 1.001 * best).float().mean() > 0.6


def test_h_and_its_gradient():
    alpha = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    rectified_sigmoid(alpha).sum().backward()
    with torch.no_grad():
        h, step = rectified_sigmoid(alpha), 1e-6
        numeric = (rectified_sigmoid(alpha + step) - rectified_sigmoid(alpha - step)) / (2 * step)
        expected = (1.2 / (1 + torch.exp(-alpha)) - 0.1).clamp(0, 1)
    assert torch.allclose(alpha.grad, numeric, atol=1e-8)
    assert torch.allclose(h, expected) and h[0] == 0 and h[-1] == 1
    fraction = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(fraction)), fraction, atol=1e-12)


@pytest.mark.parametrize("exponent", [2.0, 20.0])
def test_the_regularizer_is_the_papers_and_vanishes_on_the_grid(exponent):
    layer = RoundedLinear(Plan(random(6, 10), weights(3)))
    layer.alpha.requires_grad_(True)
    layer(random(4, 10, seed=1))
    h = rectified_sigmoid(layer.alpha)
    value = layer.undecided(exponent)
    assert value.item() == pytest.approx((1 - (2 * h - 1).abs() ** exponent).sum().item(), rel=1e-4)
    value.backward()
    open_ = (h > 0) & (h < 1) & ((2 * h - 1).abs() > 0.1)
    assert torch.equal(layer.alpha.grad[open_] < 0, h[open_] > 0.5)  # a descent moves h away from the middle
    with torch.no_grad():
        layer.alpha.copy_(torch.where(layer.alpha > 0, 9.0, -9.0))
        layer(random(4, 10, seed=1))
    assert layer.undecided(exponent).item() == pytest.approx(0, abs=1e-4)


def test_the_exponent_falls_in_a_line_after_the_warm_up():
    settings = {**PAPER, "iterations": 1000}
    assert [brecq.Solver.from_settings(settings).exponent(i) for i in (0, 199)] == [None, None]
    assert [brecq.Solver.from_settings(settings).exponent(i) for i in (200, 600, 1000)] == pytest.approx([20, 11, 2])
    assert brecq.Solver.from_settings({**settings, "warm_up": 0}).exponent(0) == 20
    assert brecq.Solver.from_settings({**settings, "warm_up": 1}).exponent(999) is None


def static(bits, symmetric, inputs):
    """(activation format, its calibrated grid as a plan has it)."""
    activation_format = IntegerActivations(bits, "tensor", dynamic=False, symmetric=symmetric)
    scale, zero = activation_format.grid(inputs.amin(), inputs.amax())
    return activation_format, {"activation_scale": scale[None], "activation_zero": zero[None]}


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_quantized_activations_are_those_of_lsq(symmetric):
    inputs = random(40, 6, seed=3) + 0.7
    activation_format, grid = static(4, symmetric, 0.6 * inputs)  # some inputs lie beyond the grid
    layer = RoundedLinear(Plan(torch.eye(6), weights(8), activation_format, **grid))
    layer.log_step.requires_grad_(True)
    scale, zero = grid["activation_scale"], grid["activation_zero"]
    inputs.requires_grad_(True)
    values, slope = layer._quantize(inputs), random(40, 6, seed=4)
    assert torch.allclose(values, activation_format.fake_quantize(inputs.detach(), (scale, zero)), atol=1e-6)
    values.backward(slope)
    with torch.no_grad():
        lowest, highest = -8 + symmetric - zero, 7 - zero  # levels of the grid, 0 where the value is 0
        ratio = inputs / scale
        inside = (torch.round(ratio) >= lowest) & (torch.round(ratio) <= highest)
        of_step = torch.where(inside, torch.round(ratio) - ratio, ratio.clamp(lowest, highest))
    assert 0 < inside.float().mean() < 1
    assert torch.allclose(inputs.grad, torch.where(inside, slope, 0))
    assert layer.log_step.grad.item() == pytest.approx((of_step * scale * slope).sum().item(), rel=1e-4)


def test_learned_steps_lower_the_error_of_static_activations(joint):
    block, batches, targets = joint
    activations = {"bits": 4, "granularity": "tensor", "dynamic": False, "symmetric": True}
    plans, seen = plans_of(block, weights(8), ActivationFormat.from_settings(activations)), {}
    hooks = [
        block.get_submodule(name).register_forward_pre_hook(lambda layer, args, name=name: seen.update({name: args[0]}))
        for name in plans
    ]
    with torch.no_grad():
        block(**batches[0])
    for hook in hooks:
        hook.remove()
    for name, plan in plans.items():
        _, grid = static(4, True, seen[name])
        plan.activation_scale, plan.activation_zero = grid["activation_scale"], grid["activation_zero"]

    def error(settings):
        solutions = brecq.Solver.from_settings({**QUICK, "iterations": 100, **settings}).solve_block(
            block, plans, batches, targets, SD3
        )
        found = {name: solution.weight for name, solution in solutions.items()}
        return distance(fixed(block, plans, found, activations), batches, targets), found

    before, kept = error({"activation_iterations": 0})
    after, learned = error({"activation_learning_rate": 0.01})
    first, _ = error({"activation_learning_rate": 0.01, "activation_phase": "before"})
    assert after < 0.8 * before and first < 0.8 * before
    for name, plan in plans.items():
        assert torch.allclose(kept[name].activation_scale, plan.activation_scale)
        assert torch.equal(kept[name].codes, learned[name].codes)  # the rounding is fixed before steps are learned
        assert learned[name].activation_scale.shape == (1,) and learned[name].activation_scale > 0
        assert not torch.equal(learned[name].activation_scale, plan.activation_scale)
        assert torch.equal(learned[name].activation_zero, plan.activation_zero)


@pytest.mark.parametrize("dynamic", [True, False])
def test_what_is_trained_is_what_a_checkpoint_computes(dynamic):
    inputs = random(5, 7, 16, seed=1)
    activation_format, grid = (IntegerActivations(8), {}) if dynamic else static(8, False, inputs)
    activations = {key: getattr(activation_format, key) for key in ("bits", "granularity", "dynamic", "symmetric")}
    plan = Plan(
        random(12, 16), weights("nf4"), activation_format, bias=random(12, seed=2),
        input_factor=random(16, seed=3).abs() + 0.5, down=random(2, 16, seed=4), up=random(12, 2, seed=5), **grid,
    )  # fmt: skip
    layer = RoundedLinear(plan)
    before = layer(inputs).detach()
    layer.fix_rounding()
    weight = layer.solution().weight
    weight.input_factor, weight.down, weight.up = plan.input_factor, plan.down, plan.up
    built = SimulatedLinear.build(weight, plan.weight_format, activations, plan.bias, torch.float32)
    assert torch.allclose(layer(inputs), built(inputs), atol=1e-4)
    factored = activation_format.fake_quantize(inputs * plan.input_factor, (grid and tuple(grid.values())) or None)
    exact = factored @ plan.weight.T + plan.bias + (inputs * plan.input_factor) @ plan.down.T @ plan.up.T
    assert torch.allclose(before, exact, atol=1e-3)  # before training the weight is the float one


def test_one_seed_gives_one_result(joint):
    block, batches, targets = joint
    plans = plans_of(block, weights(3))
    settings = {**QUICK, "iterations": 40, "learning_rate": 0.1, "regularizer": 1.0}

    def codes(seed):
        solutions = brecq.Solver.from_settings({**settings, "seed": seed}).solve_block(
            block, plans, batches, targets, SD3
        )
        return torch.cat([solution.weight.codes.flatten() for solution in solutions.values()])

    first = codes(0)
    with torch.no_grad():  # the caller's mode and generator play no part
        torch.manual_seed(5)
        assert torch.equal(codes(0), first)
    assert not torch.equal(codes(1), first)


def test_samples_stay_paired_and_are_drawn_evenly():
    def batch(first, count):
        rows = torch.arange(first, first + count).to(torch.bfloat16)
        shared = torch.arange(5)
        tokens = rows[:, None, None].expand(count, 2, 3)
        more = {"nested": (tokens, {"deep": tokens})}  # as rotary embeddings and attention's arguments come
        return {"tokens": tokens, "other": None, "shared": shared, "flag": True, **more}, (
            None,
            10 * rows[:, None, None].expand(count, 4, 3),
        )

    batches, targets = zip(batch(0, 4), batch(4, 2), strict=True)
    samples, drawn = brecq.Samples(list(batches), list(targets), 3, 0, "cpu"), []
    for _ in range(60):
        inputs, (target,) = samples.draw()
        assert inputs["tokens"].shape == (3, 2, 3) and inputs["tokens"].dtype == target.dtype == torch.float32
        assert torch.equal(10 * inputs["tokens"][:, 0, 0], target[:, 0, 0])
        assert torch.equal(inputs["nested"][0], inputs["tokens"])
        assert torch.equal(inputs["nested"][1]["deep"], inputs["tokens"])
        assert inputs["other"] is None and inputs["flag"] is True and torch.equal(inputs["shared"], torch.arange(5))
        assert len(inputs["tokens"][:, 0, 0].unique()) == 3
        drawn += inputs["tokens"][:, 0, 0].tolist()
    assert set(drawn) == set(range(6)) and max(drawn.count(i) for i in range(6)) < 2 * 30
    assert len(brecq.Samples(list(batches), list(targets), 32, 0, "cpu").draw()[1][0]) == 6  # all, where fewer


def test_error_is_summed_over_channels_and_averaged_over_tokens():
    text, image = random(2, 3, 5, seed=0), random(2, 7, 5, seed=1)
    squares = text.square().sum() + image.square().sum()
    found = brecq.block_error((text, image), (0 * text, 0 * image))
    assert found.item() == pytest.approx(squares.item() / (2 * 3 + 2 * 7), rel=1e-5)
    pixels = random(2, 5, 4, 6, seed=2)  # channels come second
    assert brecq.block_error(pixels, 0 * pixels).item() == pytest.approx(pixels.square().sum().item() / 48, rel=1e-5)
    assert brecq.block_error((None, image), (None, image)) == 0


def test_a_block_without_text_output_and_conversion_of_few_layers(joint):
    from diffusers.models.attention import JointTransformerBlock

    torch.manual_seed(1)
    _, batches, _ = joint
    block = JointTransformerBlock(32, 2, 16, context_pre_only=True).eval().to(torch.bfloat16)
    batches = [{k: v if v is None else v.to(torch.bfloat16) for k, v in batch.items()} for batch in batches]
    with torch.no_grad():
        targets = [block(**batch) for batch in batches]
    assert targets[0][0] is None
    plans = {name: plan for name, plan in plans_of(block, weights(4)).items() if name.startswith("ff.")}
    plans = {name: Plan(plan.weight.float(), plan.weight_format, bias=plan.bias) for name, plan in plans.items()}
    solutions = brecq.Solver.from_settings({**QUICK, "iterations": 5}).solve_block(block, plans, batches, targets, SD3)
    assert solutions.keys() == {"ff.net.0.proj", "ff.net.2"}
    assert all(solution.fallback is None for solution in solutions.values())


def test_weights_without_two_neighbours_give_no_nan():
    weight = random(6, 16)
    weight[0] = 0  # a row of zeros
    weight[1, 3] = 40  # an outlier that a search clips
    clipped = {"format": "integer", "bits": 2, "granularity": "channel", "group_size": None, "clip_search": True}
    plan = Plan(weight, load_format(clipped))
    layer = RoundedLinear(plan)
    assert (layer.gap == 0).any()
    inputs = random(20, 3, 16, seed=1)
    solution = brecq.Solver.from_settings(QUICK).solve_block(
        Single(weight), {"layer": plan}, [{"hidden_states": inputs}], [inputs @ weight.T], SD3
    )["layer"]
    value = solution.weight.dequantize(plan.weight_format)
    assert solution.fallback is None and value.isfinite().all() and (value[0] == 0).all()


def test_training_that_diverges_falls_back_to_rounding():
    weight, inputs = random(6, 16), random(20, 3, 16, seed=1)
    targets = inputs @ weight.T
    targets[3] = torch.nan
    plan = Plan(weight, weights(3))
    solution = brecq.Solver.from_settings({**QUICK, "iterations": 20}).solve_block(
        Single(weight), {"layer": plan}, [{"hidden_states": inputs}], [targets], SD3
    )["layer"]
    assert solution.fallback == "rtn"
    assert torch.equal(solution.weight.codes, quantize_to_nearest(weight, plan.weight_format).codes)
