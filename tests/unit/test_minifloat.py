"""Small floats: every code's value, and rounding to nearest with ties to even, against torch, torchao and float64."""

import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats import kernels

from quantwatt.formats.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, ELEMENTS

TORCH = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
TORCHAO = {
    E2M3: (kernels.f32_to_f6_e2m3_unpacked, kernels.f6_e2m3_unpacked_to_f32),
    E3M2: (kernels.f32_to_f6_e3m2_unpacked, kernels.f6_e3m2_unpacked_to_f32),
    E2M1: (kernels.f32_to_f4_unpacked, kernels.f4_unpacked_to_f32),
}
ALL = list(ELEMENTS.values())
NAMES = list(ELEMENTS)


def codes_of(element):
    return torch.arange(2**element.bits, dtype=torch.uint8)


def finite(element):
    """Finite values, ascending, without -0."""
    return element.values()[element.values().isfinite()].unique()


def hard(element):
    """Values where rounding may go wrong: all borders of two values and their float32 neighbours, and far ones."""
    grid = finite(element).double()
    borders = ((grid[1:] + grid[:-1]) / 2).float().numpy()
    grid = grid.float().numpy()
    near = [np.nextafter(part, np.float32(side)) for part in (borders, grid) for side in (-np.inf, np.inf)]
    tiny = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38, np.inf, -np.inf])
    random = torch.randn(20000, generator=torch.Generator().manual_seed(0)).numpy() * np.float32(element.largest / 2)
    return torch.from_numpy(np.concatenate([borders, grid, *near, tiny, random, random * np.float32(1e-3)]))


def brute_force(element, values):
    """Nearest value by distances in float64; of two equally near, the one whose code is even."""
    magnitudes = element.values()[: element.largest_code + 1].double()
    distance = (values.double().abs().clamp(max=element.largest)[:, None] - magnitudes).abs()
    least = distance == distance.amin(dim=1, keepdim=True)
    even = torch.arange(len(magnitudes)) % 2 == 0
    code = torch.where(least.sum(dim=1) > 1, (least & even).int().argmax(dim=1), least.int().argmax(dim=1))
    return torch.where(values.signbit(), -magnitudes[code], magnitudes[code]).float()


@pytest.mark.parametrize("element", TORCH, ids=str)
def test_8_bit_values_are_those_of_torchs_types(element):
    expected = codes_of(element).view(TORCH[element]).float()
    assert torch.equal(element.values().nan_to_num(-1, 1e9, -1e9), expected.nan_to_num(-1, 1e9, -1e9))
    assert torch.equal(element.values().signbit() & ~expected.isnan(), expected.signbit() & ~expected.isnan())
    info = torch.finfo(TORCH[element])
    assert (element.largest, 2.0**element.least_exponent, element.bits) == (info.max, info.tiny, 8)
    assert element.values()[element.largest_code] == element.largest


@pytest.mark.parametrize("element", TORCHAO, ids=str)
def test_values_of_4_and_6_bits_are_torchaos(element):
    values = TORCHAO[element][1](codes_of(element))
    assert torch.equal(element.values(), values) and torch.equal(element.values().signbit(), values.signbit())
    assert element.largest == values.max() == element.values()[element.largest_code]


def test_the_tables_of_the_specification():
    assert finite(E2M1).tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [len(finite(element)) for element in ALL] == [253, 247, 63, 63, 15]
    assert [element.values()[1].item() for element in ALL] == [2**-9, 2**-16, 0.125, 0.0625, 0.5]
    assert [element.largest_exponent for element in ALL] == [8, 15, 2, 4, 2]
    assert E4M3.values()[127].isnan() and E5M2.values()[124].isinf() and E5M2.values()[125:128].isnan().all()


@pytest.mark.parametrize("element", ALL, ids=NAMES)
def test_every_value_is_rounded_to_the_nearest_with_ties_to_even(element):
    values = hard(element)
    expected = brute_force(element, values)
    assert torch.equal(element.round(values), expected)
    codes = element.encode(values)
    assert torch.equal(element.values()[codes.int()], expected)
    assert torch.equal(codes.int() >> element.bits - 1, values.signbit().int())


@pytest.mark.parametrize("element", ALL, ids=NAMES)
def test_codes_are_those_of_torch_and_torchao(element):
    values = hard(element).clamp(-element.largest, element.largest)
    library = TORCHAO[element][0] if element in TORCHAO else lambda x: x.to(TORCH[element]).view(torch.uint8)
    assert torch.equal(element.encode(values), library(values))
    own = codes_of(element)[element.values().isfinite()]
    assert torch.equal(element.encode(element.values()[own.int()]), own)  # each code comes back, -0 too


@pytest.mark.parametrize("element", ALL, ids=NAMES)
def test_neighbours_hold_a_value_between_them(element):
    values, grid = hard(element), finite(element).numpy()
    values = values[values.isfinite()]
    low, high = (element.values()[codes.int()].numpy() for codes in element.bracket(values))
    place = np.searchsorted(grid, values.numpy(), side="right")
    assert np.array_equal(low, grid[np.maximum(place - 1, 0)])
    assert np.array_equal(high, grid[np.minimum(place, len(grid) - 1)])


@pytest.mark.parametrize("element", ALL, ids=NAMES)
def test_nan_stays_nan_in_values_and_has_a_code_that_exists(element):
    values = torch.tensor([torch.nan, 1.0])
    assert element.round(values)[0].isnan() and element.round(values)[1] == 1
    for codes in (element.encode(values), *element.bracket(values)):
        assert (codes.int() < 2**element.bits).all()


def test_rounding_leaves_its_argument_alone():
    values = torch.tensor([[0.3, 700.0], [-2.2, 1e-4]])
    before = values.clone()
    for element in ALL:
        element.round(values), element.encode(values), element.bracket(values)
    assert torch.equal(values, before)
    assert torch.equal(E2M1.round(values.T).T, E2M1.round(values))
