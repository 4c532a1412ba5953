"""Formats: grids, packing, and codes, against brute force, least squares and bitsandbytes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantwatt.config import experiment
from quantwatt.formats.packing import pack, packed_bytes, unpack
from quantwatt.formats.quantized_weight import (
    QuantizedWeight,
    fit_groups,
    join_groups,
    load_format,
    quantize_to_nearest,
    split_groups,
    stored_bits,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def integer(bits, granularity="channel", group_size=None, symmetric=False, **options):
    return load_format(
        {
            "format": "integer",
            "bits": bits,
            "granularity": granularity,
            "group_size": group_size,
            "symmetric": symmetric,
            **options,
        }
    )


def codebook(name, **options):
    return load_format({"format": name, "group_size": 64, **options})


def every_format(**options):
    """One of each kind, in 3 or 4 bits, per channel or block."""
    return {
        "asymmetric": integer(3, **options),
        "float zero": integer(3, zero_point="float", **options),
        "symmetric": integer(4, symmetric=True, **options),
        "wide symmetric": integer(4, symmetric=True, narrow=False, **options),
        "nf4": codebook("nf4", **options),
        "fp4": codebook("fp4", **options),
    }


KINDS = list(every_format())


def grid_values(weight_format, scale, zero):
    """All values that one row's codes can stand for, ascending, by decoding every code that encoding yields."""
    codes = torch.arange(2**weight_format.bits, dtype=torch.uint8)
    if getattr(weight_format, "symmetric", False) and weight_format.narrow:
        codes = codes[1:]
    return weight_format.decode(codes, scale, zero).unique()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Packing


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_writes_the_codes_bits_one_after_the_other(bits, rows, columns, seed):
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    digits = [[int(digit) for code in row for digit in f"{code:0{bits}b}"] for row in codes.tolist()]
    assert np.array_equal(packed.numpy(), np.packbits(np.array(digits, np.uint8), axis=1))
    assert packed.shape == (rows, packed_bytes(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


# The grid


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 64), ("group", 48)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_error_is_at_most_half_a_step(bits, granularity, group_size, symmetric):
    weight = normal(7, 160, seed=bits)
    weight_format = integer(bits, granularity, group_size, symmetric)
    quantized = quantize_to_nearest(weight, weight_format)
    groups = {"tensor": 1, "channel": 1, "group": -(-160 // (group_size or 1))}[granularity]
    assert quantized.scale.shape == (7, groups)
    column_group = torch.arange(160) // weight_format.group_width(160)
    step = quantized.scale[:, column_group]
    # An asymmetric zero point is itself rounded, which shifts the grid's ends by up to half a step.
    bound = 0.5 if symmetric else 1.0
    assert ((weight - quantized.dequantize(weight_format)).abs() <= bound * step * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_narrow_and_wide_symmetric_grids(bits):
    weight, half = normal(5, 64, seed=bits), 2 ** (bits - 1)
    largest = weight.abs().amax(dim=1, keepdim=True)
    for narrow, lowest, step in ((True, 1 - half, largest / (half - 1)), (False, -half, largest / (half - 0.5))):
        weight_format = integer(bits, symmetric=True, narrow=narrow)
        quantized = quantize_to_nearest(weight, weight_format)
        expected = torch.round(weight / step).clamp(lowest, half - 1)
        assert torch.equal(quantized.codes.float() - half, expected)
        assert torch.allclose(quantized.dequantize(weight_format), expected * step, rtol=1e-6)


def test_integer_grid_holds_zero_and_per_tensor_has_one_scale():
    weight = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) + 1
    weight[:, 0] = 0
    quantized = quantize_to_nearest(weight, integer(4))
    assert (quantized.dequantize(integer(4))[:, 0] == 0).all()
    for symmetric in (False, True):
        scale = quantize_to_nearest(weight, integer(4, "tensor", symmetric=symmetric, clip_search=True)).scale
        assert scale.shape == (4, 1) and len(scale.unique()) == 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_float_zero_spans_the_values_own_range(bits):
    weight = 5 + normal(6, 64, seed=bits)  # no group holds 0
    weight_format = integer(bits, zero_point="float")
    quantized = quantize_to_nearest(weight, weight_format)
    assert quantized.zero.dtype == torch.float32
    expected = np.stack([np.linspace(row.min(), row.max(), 2**bits) for row in weight.double().numpy()])
    nearest = np.abs(weight.numpy()[:, :, None] - expected[:, None]).min(axis=2)
    error = (weight - quantized.dequantize(weight_format)).abs().numpy()
    assert np.allclose(error, nearest, atol=2e-5)
    assert (quantized.codes.amin(dim=1) == 0).all() and (quantized.codes.amax(dim=1) == 2**bits - 1).all()


@pytest.mark.parametrize("clip_search", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_rows_stay_zero_and_leave_the_others_alone(kind, clip_search):
    weight_format = every_format(clip_search=clip_search)[kind]
    weight = normal(3, 64)
    alone = quantize_to_nearest(weight[2:], weight_format).dequantize(weight_format)
    weight[:2] = 0
    values = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    assert (values[:2] == 0).all() and torch.equal(values[2:], alone)


@pytest.mark.parametrize("clip_search", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_shows_in_its_own_group_only(kind, clip_search):
    weight_format = every_format(clip_search=clip_search)[kind]
    weight = normal(3, 64)
    whole = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    weight[1, 7] = float("nan")
    values = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    assert values[1].isnan().all() and torch.equal(values[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_one_column_and_a_group_that_does_not_divide(kind):
    weight_format = every_format()[kind]
    one = normal(5, 1)
    values = quantize_to_nearest(one, weight_format).dequantize(weight_format)
    assert torch.allclose(values, one, rtol=0.1)  # its own range: within the wide grid's 0.5/7.5 of it
    if hasattr(weight_format, "granularity"):
        weight_format = dataclasses.replace(weight_format, granularity="group", group_size=64)
    weight = normal(5, 160)
    quantized = quantize_to_nearest(weight, weight_format)
    assert quantized.scale.shape == (5, 3)
    parts = [quantize_to_nearest(part, weight_format).dequantize(weight_format) for part in weight.split(64, dim=1)]
    assert torch.equal(quantized.dequantize(weight_format), torch.cat(parts, dim=1))


def test_groups_as_rows_and_back():
    weight, weight_format = normal(5, 160), integer(4, "group", 64)
    parts = split_groups(weight, weight_format)
    assert [tuple(part.shape) for part in parts] == [(10, 64), (5, 32)]
    assert torch.equal(parts[0][2 * 3 + 1], weight[3, 64:128])
    assert torch.equal(join_groups(parts, 5), weight)


# Clip search


def best_clip(weight, bits, symmetric, zero_point, shared):
    """Scale and zero of the least Σ|w - q|^2.4 over 80 factors, in plain numpy: [rows], [rows]."""
    weight = weight.double().numpy()
    best = [(np.inf, None, None)] * len(weight)
    for factor in np.arange(100, 20, -1) / 100:
        found = []
        for row in weight:
            low, high = (weight.min(), weight.max()) if shared else (row.min(), row.max())
            if symmetric:
                scale = factor * max(-low, high) / (2 ** (bits - 1) - 1)
                values, zero = np.clip(np.rint(row / scale), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) * scale, None
            else:
                if zero_point == "integer":
                    low, high = min(low, 0), max(high, 0)
                scale = factor * (high - low) / (2**bits - 1)
                zero = -factor * low / scale
                zero = np.rint(zero) if zero_point == "integer" else zero
                values = (np.clip(np.rint(row / scale + zero), 0, 2**bits - 1) - zero) * scale
            found.append((np.sum(np.abs(row - values) ** 2.4), scale, zero))
        if shared:
            found = [(sum(error for error, _, _ in found), *rest) for _, *rest in found]
        best = [new if new[0] < old[0] else old for new, old in zip(found, best, strict=True)]
    return [np.array(part) for part in zip(*best, strict=True)][1:]


@pytest.mark.parametrize(("symmetric", "zero_point"), [(False, "integer"), (False, "float"), (True, "integer")])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clip_search_finds_the_least_error(bits, granularity, symmetric, zero_point):
    weight = normal(12, 96, seed=bits) ** 3
    scale, zero = best_clip(weight, bits, symmetric, zero_point, granularity == "tensor")
    weight_format = integer(bits, granularity, symmetric=symmetric, zero_point=zero_point, clip_search=True)
    found = weight_format.fit(weight)
    np.testing.assert_allclose(found[0][:, 0], scale, rtol=1e-5)
    if not symmetric:
        np.testing.assert_allclose(found[1][:, 0], zero, rtol=1e-4, atol=1e-4)


def test_clip_search_of_a_codebook_finds_the_least_error():
    weight_format, weight = codebook("nf4", clip_search=True), normal(9, 64) ** 3
    table = weight_format.codebook.double().numpy()
    for row, scale in zip(weight.double().numpy(), weight_format.fit(weight)[0][:, 0].tolist(), strict=True):
        scales = np.abs(row).max() * np.arange(100, 20, -1) / 100
        errors = [(np.abs(row[:, None] - table * s).min(axis=1) ** 2.4).sum() for s in scales]
        assert scale == pytest.approx(scales[np.argmin(errors)], rel=1e-5)


def test_clip_search_in_parts_equals_that_of_the_whole():
    weight, weight_format = normal(4100, 64) ** 3, integer(4, clip_search=True)  # more than is coded at once
    scale, zero = weight_format.fit(weight)
    for rows in (slice(0, 10), slice(4090, 4100)):
        part_scale, part_zero = weight_format.fit(weight[rows])
        assert torch.equal(part_scale, scale[rows]) and torch.equal(part_zero, zero[rows])


# Neighbours and least squares


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_bracket_holds_each_value_between_neighbours_of_the_grid(kind, device):
    weight_format = every_format()[kind]
    scale, zero = weight_format.fit(normal(1, 64).to(device))
    zero_cpu = None if zero is None else zero.cpu()
    grid = grid_values(weight_format, scale.cpu(), zero_cpu).numpy()
    step = (grid[-1] - grid[0]) / 100
    # Off the grid's own points, whose side is a matter of rounding, and beyond both ends.
    values = np.linspace(grid[0] - 30 * step, grid[-1] + 30 * step, 1001, dtype=np.float32)
    values = values[np.abs(values[:, None] - grid).min(axis=1) > 1e-5]
    codes = weight_format.bracket(torch.from_numpy(values)[None].to(device), scale, zero)
    low, high = (weight_format.decode(code, scale, zero)[0].cpu().numpy() for code in codes)
    above = np.searchsorted(grid, values)
    np.testing.assert_allclose(low, grid[np.maximum(above - 1, 0)], rtol=1e-6)
    np.testing.assert_allclose(high, grid[np.minimum(above, len(grid) - 1)], rtol=1e-6)
    nearest = weight_format.encode(torch.from_numpy(values)[None].to(device), scale, zero)
    distance = np.abs(values[:, None] - grid).min(axis=1)
    error = np.abs(weight_format.decode(nearest, scale, zero)[0].cpu().numpy() - values)
    np.testing.assert_allclose(error, distance, atol=1e-6)


def test_bracket_of_a_grid_point_starts_at_it():
    for weight_format in (integer(4, symmetric=True), codebook("nf4")):
        codes = torch.arange(1, 15, dtype=torch.uint8)[None]
        scale = torch.ones(1, 1)
        low, high = weight_format.bracket(weight_format.decode(codes, scale, None), scale, None)
        assert torch.equal(low, codes) and torch.equal(high, codes + 1)


def least_squares(design, target):
    """x of the least |design·x - target|² per row: [rows]."""
    return torch.linalg.lstsq(design.double()[:, :, None], target.double()[:, :, None]).solution[:, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_refit_is_least_squares(kind):
    weight_format, weight = every_format()[kind], normal(8, 64) ** 3
    scale, zero = weight_format.fit(weight)
    codes, target = weight_format.encode(weight, scale, zero), 0.8 * weight + 1.3 * scale
    found_scale, found_zero = weight_format.refit(codes, target, scale, zero)
    if kind == "float zero":
        # target = (codes - zero)·scale, solved for zero
        expected = least_squares(-scale.expand_as(codes), target - codes * scale)
        assert torch.equal(found_scale, scale)
        assert torch.allclose(found_zero[:, 0].double(), expected, rtol=1e-4)
        return
    if kind == "asymmetric":
        errors = [((codes.float() - z) * scale - target).square().sum(dim=1) for z in range(8)]
        assert torch.equal(found_zero[:, 0].long(), torch.stack(errors).argmin(dim=0))
        assert found_zero.dtype == torch.uint8 and (found_zero != zero).any()
    else:
        assert found_zero is None
    levels = weight_format.decode(codes, torch.ones_like(scale), found_zero)
    assert torch.allclose(found_scale[:, 0].double(), least_squares(levels, target), rtol=1e-5)


@pytest.mark.parametrize(("symmetric", "zero_point"), [(False, "integer"), (False, "float"), (True, "integer")])
def test_refit_per_tensor_has_one_grid(symmetric, zero_point):
    weight_format, weight = integer(3, "tensor", symmetric=symmetric, zero_point=zero_point), normal(8, 64)
    grid = weight_format.fit(weight)
    codes, target = weight_format.encode(weight, *grid), 0.8 * weight + 0.1
    refitted = weight_format.refit(codes, target, *grid)
    # The same numbers in one row, where there is nothing to share.
    row = dataclasses.replace(weight_format, granularity="channel")
    flat = [None if part is None else part[:1] for part in grid]
    expected = row.refit(codes.reshape(1, -1), target.reshape(1, -1), *flat)
    for found, wanted in zip(refitted, expected, strict=True):
        if found is not None:
            assert found.shape in ((8, 1), (1, 1)) and len(found.unique()) == 1
            assert found.float().unique().item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_refit_of_a_zero_target_keeps_a_positive_scale(kind):
    weight_format, weight = every_format()[kind], normal(4, 64)
    grid = weight_format.fit(weight)
    codes = weight_format.encode(weight, *grid)
    scale, _ = weight_format.refit(codes, -weight, *weight_format.fit(weight))
    assert (scale > 0).all()
    scale, _ = weight_format.refit(codes, torch.zeros_like(weight), *grid)
    assert (scale > 0).all() and scale.isfinite().all()


# Codebooks


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_equal_bitsandbytes(name):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight_format = codebook(name)
    weight = normal(24, 192, seed=3).clamp(-2, 2)
    weight[:, ::64] = 2  # known blocks, and in them all borders of two codes, and zeros
    ordered = weight_format.codebook.sort().values
    weight[:, 10:25] = ordered[1:] + ordered[:-1]
    weight[:, 70], weight[:, 71] = 0.0, -0.0
    quantized = quantize_to_nearest(weight, weight_format)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=name)
    assert torch.equal(quantized.scale.reshape(-1), state.absmax)
    assert torch.equal(pack(quantized.codes, 4), packed.reshape(24, -1))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_equal_a_search_among_the_borders(name):
    weight_format = codebook(name)
    ordered, code_of = weight_format.codebook.sort(stable=True)
    borders = (ordered[1:] + ordered[:-1]) / 2
    near = torch.cat([borders, *(torch.nextafter(borders, torch.tensor(end)) for end in (-1.0, 1.0))])
    values = torch.cat([near, torch.linspace(-1.2, 1.2, 100_001), torch.tensor([float("inf"), -float("inf")])])
    found = weight_format.encode(values, torch.ones(1), None)
    assert torch.equal(found.long(), code_of[torch.bucketize(values, borders)])


# A quantized weight


@pytest.mark.parametrize(
    "weight_format",
    [integer(3, "group", 64), integer(4, "group", 64, zero_point="float"), integer(8, symmetric=True), codebook("nf4")],
    ids=["asymmetric", "float zero", "symmetric", "nf4"],
)
def test_state_has_the_formats_size_and_comes_back(weight_format):
    quantized = quantize_to_nearest(normal(10, 160), weight_format)
    state = quantized.state(weight_format)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size * 8 == pytest.approx(stored_bits(10, 160, weight_format) * 1600)
    assert state["codes"].numel() == 10 * 160 * weight_format.bits // 8
    again = QuantizedWeight.from_state(state, weight_format, 160)
    assert torch.equal(again.dequantize(weight_format), quantized.dequantize(weight_format))


def test_stored_bits_counts_scales_and_zero_points():
    assert stored_bits(10, 128, integer(4, "group", 64, symmetric=True)) == 4 + 32 / 64
    assert stored_bits(10, 128, integer(4, "group", 64)) == 4 + (32 + 8) / 64
    assert stored_bits(10, 128, integer(4, "group", 64, zero_point="float")) == 4 + (32 + 32) / 64
    assert stored_bits(10, 5, integer(3)) == (16 + 40) / 5  # 15 bits of codes in two bytes


def whole_weight():
    """A QuantizedWeight of which every part is there, in groups that do not follow the columns' order."""
    quantized = quantize_to_nearest(normal(10, 128), integer(4, "group", 32))
    return dataclasses.replace(
        quantized,
        input_factor=torch.rand(128),
        group_index=(torch.arange(128) % 4).to(torch.int32),
        down=normal(3, 128).bfloat16(),
        up=normal(10, 3).bfloat16(),
        first_output=normal(1, 10)[0],
        activation_scale=torch.rand(1),
        activation_zero=torch.tensor([7.0]),
        tensor_scale=torch.rand(1),
        rotation=torch.tensor([32], dtype=torch.int32),
        rotated_factor=torch.rand(128),
    )


def test_every_part_survives_a_checkpoint(tmp_path):
    from safetensors.torch import load_file, save_file

    quantized, weight_format = whole_weight(), integer(4, "group", 32)
    # Layers that were solved together share parts, which a safetensors file does not allow.
    halves = {"a": quantized.rows(0, 6), "b": quantized.rows(6, 10)}
    states = {f"{n}.{part}": tensor for n, half in halves.items() for part, tensor in half.state(weight_format).items()}
    save_file(states, tmp_path / "weights.safetensors")
    stored = load_file(tmp_path / "weights.safetensors")
    for name, half in halves.items():
        state = {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")}
        again = QuantizedWeight.from_state(state, weight_format, 128)
        for field in dataclasses.fields(QuantizedWeight):
            found, wanted = getattr(again, field.name), getattr(half, field.name)
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_rows_slice_what_belongs_to_rows():
    quantized, weight_format = whole_weight(), integer(4, "group", 32)
    part = quantized.rows(3, 7)
    assert torch.equal(part.dequantize(weight_format), quantized.dequantize(weight_format)[3:7])
    assert torch.equal(part.up, quantized.up[3:7]) and torch.equal(part.down, quantized.down)
    assert quantize_to_nearest(normal(4, 8), integer(4, symmetric=True)).rows(0, 2).zero is None


def test_group_index_says_which_grid_a_column_stands_on():
    quantized, weight_format = whole_weight(), integer(4, "group", 32)
    values = quantized.dequantize(weight_format)
    for column in (0, 1, 33, 127):
        grid = quantized.scale[:, column % 4], quantized.zero[:, column % 4]
        assert torch.equal(values[:, column], weight_format.decode(quantized.codes[:, column], *grid))


# The rest


@pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_codes(kind):
    weight_format, weight = every_format(clip_search=True)[kind], normal(64, 160)
    here, there = quantize_to_nearest(weight, weight_format), quantize_to_nearest(weight.cuda(), weight_format)
    assert there.codes.is_cuda and (there.codes.cpu() == here.codes).float().mean() > 0.999
    assert torch.allclose(there.dequantize(weight_format).cpu(), here.dequantize(weight_format), atol=0.5)
    state = there.state(weight_format)
    assert not any(tensor.is_cuda for tensor in state.values())


@pytest.mark.parametrize("name", ["integer", "nf4", "fp4"])
def test_a_formats_defaults_are_the_schemas(name):
    entry = {"format": name, **({"bits": 4} if name == "integer" else {})}
    complete = experiment.complete_method({"weights": entry}, "mine.yaml", "methods.m")["weights"]
    without = {key: value for key, value in complete.items() if key not in ("symmetric", "narrow", "zero_point")}
    del without["clip_search"]
    assert load_format(complete) == load_format(without)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"symmetric": True, "zero_point": "float"}, "a symmetric grid has no zero point"),
        ({"narrow": False}, "narrow is a choice of symmetric grids"),
        ({"zero_point": "flaot"}, "did you mean 'float'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(entry, sentence):
    with pytest.raises(experiment.ConfigurationError, match=sentence):
        experiment.complete_method({"weights": {"format": "integer", "bits": 4, **entry}}, "mine.yaml", "methods.m")


def test_fit_groups_equals_fitting_each_group():
    weight, weight_format = normal(5, 160), integer(4, "group", 64, clip_search=True)
    scale, zero = fit_groups(weight, weight_format)
    for group, part in enumerate(weight.split(64, dim=1)):
        expected = weight_format.fit(part)
        assert torch.equal(scale[:, group : group + 1], expected[0])
        assert torch.equal(zero[:, group : group + 1], expected[1])
