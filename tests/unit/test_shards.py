"""Files of bounded size, in the layout that other libraries expect, and reading them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quantwatt.artifacts import shards

TENSORS = {f"layer.{i}.codes": torch.arange(1000, dtype=torch.int32) + i for i in range(5)}  # of 4000 bytes each


def test_shards_are_named_and_listed_as_libraries_look_for_them(tmp_path):
    files = shards.write(tmp_path, TENSORS, shard_bytes=8000)
    parts = [f"weights-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files == [*parts, "weights.safetensors.index.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"]["total_size"] == 20_000 and list(index["weight_map"].values()).count(parts[0]) == 2
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])


@pytest.mark.parametrize("shard_bytes", [100, 8000, shards.SHARD_BYTES])
def test_every_tensor_is_read_from_where_it_is(tmp_path, shard_bytes):
    files = shards.write(tmp_path, TENSORS, shard_bytes)
    assert len(files) == {100: 6, 8000: 4}.get(shard_bytes, 1)
    stored = shards.Shards(tmp_path, files)
    assert stored.path.keys() == TENSORS.keys()
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in TENSORS.items())


def test_what_is_read_no_longer_needs_the_file(tmp_path):
    [file] = shards.write(tmp_path, TENSORS)
    read = shards.Shards(tmp_path, [file]).read("layer.3.codes")
    path = tmp_path / file
    with path.open("r+b") as opened:  # a mapped file's tensors would change with it
        opened.write(bytes(path.stat().st_size))
    assert torch.equal(read, TENSORS["layer.3.codes"])


def test_shards_of_a_larger_checkpoint_are_not_left_behind(tmp_path):
    (tmp_path / "manifest.json").touch()
    shards.write(tmp_path, TENSORS, shard_bytes=4000)
    assert shards.write(tmp_path, TENSORS) == ["weights.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == {"weights.safetensors", "manifest.json"}
