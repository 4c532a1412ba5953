"""The searches in C give the bits of those in PyTorch, on one thread and on two."""

import pytest
import torch

from quantwatt.formats.gguf import compiled_search, search
from quantwatt.formats.gguf.simple import _look_up, _nearest
from quantwatt.formats.iq4_nl import Format as Iq4Nl
from quantwatt.formats.q3_k import Format as Q3K
from quantwatt.formats.q4_k import Format as Q4K

GROUPS, COUNTS = 401, (16, 32)  # no multiple of what C takes at once


def groups(count):
    """Of all magnitudes, some with equal values, zeros, one sign, a single value or hardly any size."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(GROUPS, count, generator=generator) * torch.logspace(-18, 4, GROUPS)[:, None]
    values[0], values[1], values[2], values[3] = 0.0, 0.7, -0.7, values[3].abs()
    values[4], values[5, 1:], values[6] = -values[4].abs(), 0.0, values[6].sign()
    values[7, ::2], values[8] = -values[7, 1::2], torch.arange(count) % 2 - 0.5
    values[9] = torch.where(torch.arange(count) == 3, -1e-3, 0.0)
    return values


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    if compiled_search.library() is None:
        pytest.skip("there is no C compiler")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def same(one, other):
    return all(
        torch.equal(mine.nan_to_num(7e7).view(torch.int32), theirs.nan_to_num(7e7).contiguous().view(torch.int32))
        for mine, theirs in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("highest", "first", "steps"), [(15, -1.0, 20), (3, -0.5, 15)])
def test_scale_and_minimum(count, absolute, highest, first, steps):
    values = groups(count)
    given = values, values.abs() + values.square().mean(dim=1, keepdim=True).sqrt(), highest, first, steps, absolute
    assert same(compiled_search.affine(*given), search.affine(*given))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("middle", [4, 32])
def test_scale_alone(count, middle):
    values = groups(count)
    assert same(compiled_search.symmetric(values, middle), search.symmetric(values, middle))
    assert same(compiled_search.coordinate(values, middle), search.coordinate(values, middle))


def test_a_codebook():
    values, (_, levels) = groups(32), _nearest(Iq4Nl, torch.device("cpu"))
    given = values, Iq4Nl.codebook[0].item()

    def nearest(places):
        return _look_up(levels, places)

    found = compiled_search.of_codebook(*given, levels, nearest)
    assert same([found], [search.of_codebook(*given, nearest)])


@pytest.mark.parametrize("kind", [Q4K, Q3K, Iq4Nl])
def test_a_format_is_the_same_without_a_compiler(monkeypatch, kind):
    weight_format, weight = kind(), torch.randn(6, 256, generator=torch.Generator().manual_seed(1))
    width = weight_format.fit_width(256)
    compiled = weight_format.quantize(weight[:, :width])
    monkeypatch.setattr(compiled_search, "library", lambda: None)
    plain = weight_format.quantize(weight[:, :width])
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(compiled, plain, strict=True))
