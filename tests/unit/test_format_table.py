"""The documentation's table of formats against the schemas, the bits that formats store, and the kernels."""

import re
from pathlib import Path

import pytest

from quantwatt import registry
from quantwatt.config.experiment import complete_method
from quantwatt.formats.library import LibraryFormat
from quantwatt.formats.quantized_weight import load_format, stored_bits
from quantwatt.inference.kernel_choice import KERNELS

METHODS = (Path(__file__).parents[2] / "docs/methods.md").read_text()
WIDTH = 4096  # of a layer: a scale per channel is hardly anything
DEVICES = ("cpu", "cuda")


def rows():
    """{format: [its bits, CPU, CUDA] of the table}."""
    table = METHODS.split("| format | stored bits a weight |")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, bits, *devices, _ = (cell.strip() for cell in line.strip("|").split("|"))
        names = re.findall(r"`([^`]+)`", names)
        each = bits.split(", ") if names != ["integer"] else [bits]
        for name, own in zip(names, each if len(each) > 1 else each * len(names), strict=True):
            assert found.setdefault(name, [own, *devices]) == [own, *devices], name
    return found


def weights_of(name):
    bits = {"bits": 4} if name == "integer" else {}
    return complete_method({"weights": {"format": name, **bits}}, "methods.md", name)["weights"]


def is_of_library(name):
    return issubclass(registry.load("formats", name).Format, LibraryFormat)


def test_every_format_has_a_row():
    assert sorted(rows()) == registry.names("formats")


@pytest.mark.parametrize("name", sorted(rows()))
def test_what_a_row_says_of_bits_and_devices(name):
    bits, *said = rows()[name]
    if is_of_library(name):
        assert [bits, *said] == ["the library's", "real", "real"]
        return
    assert said == ["real" if KERNELS[device].get(name) else "simulated" for device in DEVICES]
    if name == "integer":
        weights = {**weights_of(name), "granularity": "group", "group_size": 64}
        for symmetric, overhead in re.findall(r"(32 for each group|(\d+) with a zero point)", bits):
            zero = not symmetric.startswith("32")
            stored = stored_bits(WIDTH, WIDTH, load_format(weights | {"symmetric": not zero}))
            assert stored == 4 + int(overhead or 32) / 64
    else:
        assert float(bits) == pytest.approx(stored_bits(WIDTH, WIDTH, load_format(weights_of(name))), abs=0.005)
