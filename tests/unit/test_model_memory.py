"""Memory requested for a job that loads a model: from its weights as stored, or in the dtype it computes in."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantwatt.artifacts import manifest
from quantwatt.jobs import model_memory


def described(folder, dtype, stored, values=1_000_000):
    folder.mkdir(exist_ok=True)
    save_file({"a": np.zeros(values, stored), "b": np.zeros((2, 3), np.int64)}, folder / "text.safetensors")
    (folder / "config.json").write_text("{}")
    files = manifest.describe_files(folder, ["text.safetensors", "config.json"])
    manifest.write_json(
        folder / "manifest.json", {"settings": {"dtype": dtype}, "location": str(folder), "files": files}
    )
    return folder / "manifest.json"


@pytest.mark.parametrize(
    ("dtype", "stored", "megabytes"),
    [("bfloat16", np.float16, 2), ("float32", np.float16, 4), ("bfloat16", np.float32, 4), ("float32", np.float32, 4)],
)
def test_weights_are_counted_in_the_larger_of_two_types(tmp_path, dtype, stored, megabytes):
    path = described(tmp_path / "m", dtype, stored)
    expected = model_memory.LIBRARIES_MB + 1.3 * megabytes
    assert model_memory.model_memory_mb(path, 100) == pytest.approx(expected, abs=1)
    both = model_memory.LIBRARIES_MB + 2 * (expected - model_memory.LIBRARIES_MB)
    assert model_memory.model_memory_mb(path, 100, models=2) == pytest.approx(both, abs=2)
    assert model_memory.model_memory_mb(path, 8000) == 8000  # the configuration's value is the least


def test_a_model_of_another_machine_or_a_broken_one_is_told_by_its_sizes(tmp_path):
    path = described(tmp_path / "m", "float32", np.float16)
    assert model_memory.loaded_bytes(tmp_path / "nowhere", 9_500_000_000, 2) == 9_500_000_000
    weights = tmp_path / "m/text.safetensors"
    weights.write_bytes(b"\xff" * 100)
    assert model_memory.loaded_bytes(weights, 100, 4) in (100, 200)
    with pytest.raises(FileNotFoundError):  # which Snakemake takes for: not yet known
        model_memory.model_memory_mb(path.with_name("none.json"), 100)
