"""Which product is faster: measured once, remembered in a file."""

import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.inference import kernel_times, native


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The shapes that were measured; C takes a second, oneDNN as long as it has tokens, in 100."""
    shapes = []
    kernel_times.is_faster.cache_clear()
    kernel_times._file.cache_clear()
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path / "new folder")
    monkeypatch.setattr("quantwatt.inference.kernels.int8_in_c.products", lambda *shape: shapes.append(shape) or shape)
    monkeypatch.setattr(kernel_times, "seconds_of", lambda shape: {"C": 1, "oneDNN": shape[2] / 100})
    yield shapes
    kernel_times.is_faster.cache_clear()
    kernel_times._file.cache_clear()


def test_a_shape_is_measured_once_on_a_machine(measured):
    for _ in range(2):
        assert kernel_times.is_faster(64, 32, 16, 2) and not kernel_times.is_faster(64, 32, 256, 2)
        kernel_times.is_faster.cache_clear()  # as in another process
    assert measured == [(64, 32, 16), (64, 32, 256)]
    kernel_times.is_faster(64, 32, 16, 1)
    assert len(measured) == 3  # another number of threads
    assert kernel_times.remembered(2)["64 x 32 x 16"] == {"C": 1, "oneDNN": 0.16}


def test_a_little_faster_is_not_worth_the_memory(measured, monkeypatch):
    monkeypatch.setattr(kernel_times, "seconds_of", lambda _: {"C": 1.05, "oneDNN": 1})
    assert not kernel_times.is_faster(64, 32, 16, 2)


@pytest.mark.parametrize("found", ["", "{", "no JSON"])
def test_a_broken_file_is_measured_anew(measured, found):
    kernel_times.is_faster(64, 32, 16, 2)
    kernel_times._file(2).write_text(found)
    kernel_times.is_faster.cache_clear()
    kernel_times.is_faster(64, 32, 16, 2)
    assert len(measured) == 2 and "64 x 32 x 16" in kernel_times.remembered(2)


def test_a_folder_that_cannot_be_written_is_no_failure(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path / "file")
    kernel_times._file.cache_clear()
    assert kernel_times.is_faster(64, 32, 16, 2)


def test_a_full_disk_is_no_failure(measured, monkeypatch):
    def refuse(*_):
        raise DataError("the disk is full")

    monkeypatch.setattr(kernel_times.manifest, "write_json", refuse)
    assert kernel_times.is_faster(64, 32, 16, 2)


@pytest.mark.parametrize(
    ("tokens", "counted"), [(0, 1), (1, 1), (2, 1), (3, 4), (9, 16), (100, 64), (200, 256), (10**6, 4096)]
)
def test_the_nearest_number_of_tokens_counts(tokens, counted):
    assert kernel_times.counted_as(tokens) == counted


def test_runs_take_turns_and_the_median_counts():
    clock, calls = [0.0], []

    def run(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds * (50 if len(calls) == 7 else 1)  # a disturbance

        return call

    found = kernel_times.seconds_of({"a": run("a", 0.001), "b": run("b", 0.002)}, lambda: clock[0])
    assert found == pytest.approx({"a": 0.001, "b": 0.002})
    assert "".join(calls[4:]) == 5 * "aab"
